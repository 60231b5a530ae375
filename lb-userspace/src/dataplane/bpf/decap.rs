//! The decapsulator for servers.

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, lpm_trie::Key},
    programs::{Xdp, XdpMode},
};
use std::net::IpAddr;

use super::error::{AttachError, LoadError, chain, errno, load_error};
use crate::dataplane::objects;

/// Takes the outer header off packets from allowed balancers. Dropping it detaches.
pub struct Decap {
    ebpf: Ebpf,
}

impl Decap {
    /// Loads the program; packets from these networks (address, prefix length) are unwrapped.
    pub fn load(allow: &[(IpAddr, u8)]) -> Result<Self, LoadError> {
        let mut ebpf = Ebpf::load(objects::decap()?).map_err(|e| load_error("create the BPF maps", &e))?;
        fill(&mut ebpf, allow).map_err(|e| load_error("fill the list of allowed balancers", &e))?;
        program(&mut ebpf).load().map_err(|e| load_error("load the XDP program", &e))?;
        Ok(Self { ebpf })
    }

    /// Attaches it: in the driver, else in the network stack. Answers whether it is in the driver.
    pub fn attach(&mut self, interface: &str) -> Result<bool, AttachError> {
        match self.attach_as(interface, XdpMode::Driver) {
            Err(AttachError::Refused(_)) => self.attach_as(interface, XdpMode::Skb).map(|()| false),
            other => other.map(|()| true),
        }
    }

    fn attach_as(&mut self, interface: &str, mode: XdpMode) -> Result<(), AttachError> {
        match program(&mut self.ebpf).attach(interface, mode) {
            Ok(_) => Ok(()),
            Err(aya::programs::ProgramError::UnknownInterface { .. }) => Err(AttachError::NoInterface),
            Err(e) => Err(match errno(&e) {
                Some(libc::EBUSY | libc::EEXIST) => AttachError::Taken,
                Some(libc::EPERM | libc::EACCES) => AttachError::Permission,
                _ => AttachError::Refused(chain(&e)),
            }),
        }
    }
}

fn fill(ebpf: &mut Ebpf, allow: &[(IpAddr, u8)]) -> Result<(), MapError> {
    for (address, prefix) in allow {
        match address {
            IpAddr::V4(a) => {
                let mut list: LpmTrie<&mut MapData, [u8; 4], u8> =
                    ebpf.map_mut("ALLOW4").expect("lb-ebpf defines it").try_into()?;
                list.insert(&Key::new(u32::from(*prefix), a.octets()), 1, 0)?;
            }
            IpAddr::V6(a) => {
                let mut list: LpmTrie<&mut MapData, [u8; 16], u8> =
                    ebpf.map_mut("ALLOW6").expect("lb-ebpf defines it").try_into()?;
                list.insert(&Key::new(u32::from(*prefix), a.octets()), 1, 0)?;
            }
        }
    }
    Ok(())
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("decap")
        .and_then(|program| program.try_into().ok())
        .expect("the embedded object has the XDP program: lb-ebpf defines it")
}
