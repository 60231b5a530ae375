//! `cargo xtask run`: xlb in a lab, with a live table, or on this host.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_lab::{
    ConfigSource, HTTP_V4, HTTP_V6, Lab, LabConfig, ServerProgram, Status, Tally, TopologyConfig, Traffic,
    is_root, stop,
};

use crate::{
    build,
    control::Control,
    lab::SERVER_COMMAND,
    setup, story,
    table::View,
    tool::{root, uninterrupted},
};

/// Runs xlb.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Run on this host with this file, instead of in the lab
    #[arg(long, value_name = "FILE", conflicts_with = "story")]
    config: Option<PathBuf>,
    /// Let the lab play its story by itself, in under a minute, and check that it holds
    #[arg(long)]
    story: bool,
    /// Requests a second that the lab's client sends
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Build xlb optimised
    #[arg(long)]
    release: bool,
    /// Use this xlb instead of building one
    #[arg(long, value_name = "PATH", conflicts_with = "release")]
    xlb: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: RunArgs) -> Result<()> {
    if args.config.is_none() && !is_root() {
        bail!(
            "the lab is made of network namespaces and an XDP program, which need root.\n\
             Run it as `sudo -E env PATH=\"$PATH\" cargo xtask run`; it touches nothing outside its own namespaces"
        );
    }
    if args.config.is_none() {
        setup::packages()?;
    }
    let binary = match args.xlb {
        Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display()))?,
        None => build::run(build::Args { release: args.release, ..build::Args::default() })?,
    };
    if let Some(config) = args.config {
        let error = Command::new(&binary).args(["run", "--config"]).arg(config).exec();
        return Err(error).with_context(|| format!("run {}", binary.display()));
    }
    stop::on_signals();
    if args.story {
        return story::play(lab_config(binary, ConfigSource::Text(LAB_YAML.to_owned()), 3)?);
    }
    let file = root().join("config/lab.yaml");
    watch(lab_config(binary, ConfigSource::Path(file), 4)?, args.rate)
}

/// What `config/lab.yaml` was when this was built.
const LAB_YAML: &str = include_str!("../../config/lab.yaml");

fn lab_config(binary: PathBuf, config: ConfigSource, servers: usize) -> Result<LabConfig> {
    let server = ServerProgram::this_binary(SERVER_COMMAND)?;
    let topology = TopologyConfig { servers, ..TopologyConfig::default() };
    Ok(LabConfig { topology, xlb: Some((binary, config)), ..LabConfig::new(server) })
}

/// The lab for people: until Ctrl-C it answers `cargo xtask lab` and shows the table.
fn watch(config: LabConfig, rate: u32) -> Result<()> {
    eprintln!("Building the lab ...");
    let Some(mut lab) = uninterrupted(Lab::start(config))? else { return Ok(()) };
    let mut control = Control::listen(&lab)?;
    let hints = hints(&lab)?;
    let traffic = Traffic::start(lab.client(), &[HTTP_V4, HTTP_V6], rate);
    let terminal = io::stdout().is_terminal();
    if !terminal {
        println!("{hints}");
    }
    let (start, mut next) = (Instant::now(), Instant::now());
    let mut total = Tally::default();
    while !stop::requested() {
        control.serve(&mut lab);
        if let Some(status) = lab.xlb_mut()?.exit_status() {
            bail!("xlb ended by itself ({status}); its log:\n{}", lab.xlb()?.last_log(40));
        }
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            let second = traffic.take_tally();
            total.merge(second.clone());
            let status = lab.status().map_err(|error| format!("{error:#}"));
            let status: Result<&Status, &str> = status.as_ref().map_err(String::as_str);
            let view = View { age_s: start.elapsed().as_secs(), status, second: &second, total: &total };
            let text = if terminal {
                let log = lab.xlb()?.last_log(5);
                // Home, and clear what is below: less flicker than clearing first.
                format!("\x1b[H\x1b[J{hints}\n{}\nxlb says:\n{log}", view.table())
            } else {
                view.line() + "\n"
            };
            // A reader that has gone away, as in `| head`, ends the lab.
            if io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
                break;
            }
        }
        thread::sleep(Duration::from_millis(30));
    }
    eprintln!("\nTaking the lab down ...");
    Ok(())
}

fn hints(lab: &Lab) -> Result<String> {
    let config = lab.xlb()?.config_path().display().to_string();
    Ok(format!(
        "xlb lab {}: a client asks http://{HTTP_V4}/ of s1, s2, s3 (s4 is a spare). Ctrl-C ends it.\n\
         Edit {config} and save it, or in another terminal:\n\
         cargo xtask lab kill s2 | start s2 | pause s2 | cut s2 | curl 100 | shell client | xlb status\n",
        std::process::id()
    ))
}
