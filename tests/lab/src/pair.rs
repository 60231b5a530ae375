//! Two balancers with a file each, of which either may be lost.

use std::{fs, path::Path, thread};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Lab, LabConfig},
    xlb::Xlb,
};

/// A lab with two controllers. Dropping it ends them and removes all that it made.
#[derive(Debug)]
pub struct Pair {
    // Controllers before the network that they are in.
    balancers: Vec<Xlb>,
    lab: Lab,
}

impl Pair {
    /// Builds the network (`config.topology.pair` is set for it; `config.xlb` must be none), starts the servers, then a controller with a
    /// file of its own on each balancer. The router sends everything to the first.
    pub fn start(mut config: LabConfig, xlb: &Path, files: [&str; 2]) -> Result<Self> {
        ensure!(config.xlb.is_none(), "the controllers of a pair are its own");
        config.topology.pair = true;
        let (arguments, timeout) = (config.arguments.clone(), config.ready_timeout);
        let mut pair = Self { balancers: Vec::new(), lab: Lab::start(config)? };
        for (host, text) in pair.lab.topology().balancers().iter().zip(files) {
            let mut balancer = Xlb::new(xlb, host.netns.handle(), None, &arguments)?;
            fs::write(balancer.config_path(), text).context("write the configuration")?;
            balancer.start()?;
            pair.balancers.push(balancer);
        }
        for balancer in &mut pair.balancers {
            balancer.wait_ready(timeout)?;
        }
        Ok(pair)
    }

    /// The network, the servers and the client.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The controllers, in the order of their files.
    pub fn balancers(&self) -> &[Xlb] {
        &self.balancers
    }

    /// A balancer is lost with all that is in it, and the router sends its share to the other one.
    pub fn lose(&mut self, number: usize) -> Result<()> {
        let hosts = self.lab.topology().balancers();
        let (lost, other) = (&hosts[number].name, &hosts[1 - number].name);
        self.lab.topology().unplug(lost)?;
        self.balancers[number].kill()?;
        self.lab.topology().set_next_hops(&[other])
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            for balancer in &self.balancers {
                eprintln!("--- xlb log\n{}", balancer.last_log(20));
            }
        }
    }
}
