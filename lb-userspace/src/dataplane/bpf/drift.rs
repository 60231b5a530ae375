//! What others changed of the program, its links and the pins: seen, mended, told.

use std::os::fd::AsFd as _;

use aya::{maps::MapInfo, programs::ProgramInfo};

use super::{
    error::{PinError, chain},
    link::Link,
    pins::PinDir,
    program::BpfProgram,
};

/// Something that was not as we left it. Displays as an event's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Drift {
    /// The data path is off this interface, which has to be attached again.
    #[error("drift: the data path was taken off {0}")]
    Detached(String),
    /// Another program ran through our link; ours does again.
    #[error("drift: the program on {interface} was replaced by another (id {program}); repair: ours is back")]
    Replaced {
        /// The interface.
        interface: String,
        /// The other program.
        program: u32,
    },
    /// Pins were missing or led to something else.
    #[error("drift: pins were removed or replaced; repair: pinned again: {}", .0.join(", "))]
    Pins(Vec<String>),
    /// It could not be mended, and is tried again at the next check.
    #[error("drift: {0}")]
    Unmended(String),
}

impl BpfProgram {
    /// Looks whether every interface still runs this program through our link, and whether all is still pinned; mends
    /// what it can.
    pub fn check(&mut self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        let mut failures = Vec::new();
        let mut detached = Vec::new();
        for (name, held) in &self.links {
            let Some(ifindex) = held.ifindex else { continue };
            match held.link.state() {
                Ok(state) if state.ifindex != ifindex => detached.push(name.clone()),
                Ok(state) if state.program != self.id => match held.link.update(self.fd()) {
                    Ok(()) => {
                        let (interface, program) = (name.clone(), state.program);
                        drifts.push(Drift::Replaced { interface, program });
                    }
                    Err(e) => failures.push(format!("put the program back on {name}: {e}")),
                },
                Ok(_) => {}
                Err(e) => failures.push(format!("look at the link of {name}: {e}")),
            }
        }
        for name in detached {
            self.detach(&name);
            drifts.push(Drift::Detached(name));
        }
        match self.mend_pins() {
            Ok(pinned) if pinned.is_empty() => {}
            Ok(pinned) => drifts.push(Drift::Pins(pinned)),
            Err(e) => failures.push(chain(&e)),
        }
        let unmended = (!failures.is_empty()).then(|| failures.join("; "));
        if self.unmended != unmended {
            self.unmended.clone_from(&unmended);
            drifts.extend(unmended.map(Drift::Unmended));
        }
        drifts
    }

    /// Pins again what is not pinned where it should be; answers what.
    fn mend_pins(&mut self) -> Result<Vec<String>, PinError> {
        let Some(pins) = &mut self.pins else { return Ok(Vec::new()) };
        if !pins.is_held() {
            pins.renew()?;
        }
        pins.make()?;
        let pins = self.pins.as_ref().expect("it was there above");
        let mut pinned = Vec::new();
        if ProgramInfo::from_pin(pins.program()).map(|info| info.id()).ok() != Some(self.id) {
            pins.put(self.fd(), &pins.program())?;
            pinned.push("prog".to_owned());
        }
        for map in &self.maps {
            let at = pins.maps().join(map.name);
            if MapInfo::from_pin(&at).map(|info| info.id()).ok() != Some(map.id) {
                pins.put(map.fd.as_fd(), &at)?;
                pinned.push(map.name.to_owned());
            }
        }
        pinned.extend(self.mend_link_pins(pins)?);
        Ok(pinned)
    }

    fn mend_link_pins(&self, pins: &PinDir) -> Result<Vec<String>, PinError> {
        let mut pinned = Vec::new();
        for (name, held) in &self.links {
            let at = pins.link(name);
            let there = Link::open(&at).and_then(|link| link.state()).ok();
            let ours = held.link.state().ok();
            if ours.is_some() && there.map(|state| state.id) != ours.map(|state| state.id) {
                pins.put(held.link.as_fd(), &at)?;
                pinned.push(format!("the link of {name}"));
            }
        }
        Ok(pinned)
    }
}
