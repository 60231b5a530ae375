//! What of an interface's settings will bite once packets go through XDP, and the command that mends it.

use std::collections::BTreeSet;

use super::{
    ethtool::NicFeatures,
    model::{AttachedMode, LinkInfo},
};

/// The largest MTU with which drivers of 4 KiB pages take a native XDP program that knows one buffer a packet only:
/// the page less headroom, `skb_shared_info`, Ethernet header and VLAN tag.
pub const SINGLE_BUFFER_MTU_MAX: u32 = 3498;

/// What the warnings depend on besides the interface.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// The program takes packets of several buffers (`xdp.frags`).
    pub frags: bool,
    /// Ids of our own programs: those are welcome on the interface.
    pub own_programs: BTreeSet<u32>,
}

/// One sentence or two for each thing that will bite: what will happen and what mends it.
pub fn warnings(link: &LinkInfo, nic: &NicFeatures, attachment: &Attachment) -> Vec<String> {
    let name = &link.name;
    let mut warnings = Vec::new();
    for xdp in link.xdp.iter().filter(|xdp| !attachment.own_programs.contains(&xdp.program_id)) {
        let keyword = match xdp.mode {
            AttachedMode::Native => "xdpdrv",
            AttachedMode::Generic => "xdpgeneric",
            AttachedMode::Hardware => "xdpoffload",
        };
        warnings.push(format!(
            "{name}: another XDP program (id {id}, {mode}) is attached; ours cannot be while it is. See whose it is with \
             `bpftool prog show id {id}`; stop its owner or take it off with `ip link set dev {name} {keyword} off`",
            id = xdp.program_id,
            mode = xdp.mode,
        ));
    }
    if link.mtu > SINGLE_BUFFER_MTU_MAX && !attachment.frags {
        warnings.push(format!(
            "{name}: the MTU is {}; most drivers refuse a native XDP program above {SINGLE_BUFFER_MTU_MAX}, and generic \
             mode is several times slower. Mend: `ip link set dev {name} mtu {SINGLE_BUFFER_MTU_MAX}`",
            link.mtu
        ));
    }
    if nic.rx_vlan_offload == Some(true) {
        warnings.push(format!(
            "{name}: receive VLAN offload is on; the NIC takes tags out before the program sees them, so tagged packets \
             are forwarded without their tag, into the wrong network. Harmless where no tags are in use. Mend: \
             `ethtool -K {name} rxvlan off`"
        ));
    }
    if nic.lro == Some(true) {
        warnings.push(format!(
            "{name}: large receive offload is on; drivers refuse native XDP with it, or hand over merged packets that \
             are larger than the way to the backend takes. Mend: `ethtool -K {name} lro off`"
        ));
    }
    warnings.extend(queue_warning(name, nic));
    warnings
}

fn queue_warning(name: &str, nic: &NicFeatures) -> Option<String> {
    let queues = nic.rx_queues.filter(|queues| queues.used == 1 && nic.cpus > 1)?;
    let what = format!("{name}: one receive queue only; one of {} CPUs does all the forwarding", nic.cpus);
    let wanted = queues.max.min(nic.cpus);
    Some(if wanted > 1 {
        let kind = if queues.combined { "combined" } else { "rx" };
        format!("{what}. Mend: `ethtool -L {name} {kind} {wanted}`")
    } else {
        format!("{what}. The interface offers no more: `ethtool -l {name}` shows it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ethtool::RxQueues, model::AttachedXdp};

    fn link() -> LinkInfo {
        LinkInfo {
            ifindex: 2,
            name: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            admin_up: true,
            oper_up: true,
            xdp: Vec::new(),
            kind: None,
            master: None,
        }
    }

    fn good() -> NicFeatures {
        NicFeatures {
            rx_vlan_offload: Some(false),
            lro: Some(false),
            rx_queues: Some(RxQueues { used: 4, max: 8, combined: true }),
            cpus: 4,
        }
    }

    /// The sole warning.
    fn one(link: &LinkInfo, nic: &NicFeatures, attachment: &Attachment) -> String {
        let mut all = warnings(link, nic, attachment);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn a_good_or_silent_nic_gets_none() {
        let silent = NicFeatures { cpus: 8, ..NicFeatures::default() };
        for nic in [good(), silent] {
            assert_eq!(warnings(&link(), &nic, &Attachment::default()), Vec::<String>::new());
        }
    }

    #[test]
    fn offloads_come_with_the_command() {
        let nic = NicFeatures { rx_vlan_offload: Some(true), ..good() };
        assert!(one(&link(), &nic, &Attachment::default()).contains("`ethtool -K eth0 rxvlan off`"));
        let nic = NicFeatures { lro: Some(true), ..good() };
        assert!(one(&link(), &nic, &Attachment::default()).contains("`ethtool -K eth0 lro off`"));
    }

    #[test]
    fn mtu_matters_to_programs_of_one_buffer() {
        let at_limit = LinkInfo { mtu: 3498, ..link() };
        assert!(warnings(&at_limit, &good(), &Attachment::default()).is_empty());
        let above = LinkInfo { mtu: 3499, ..link() };
        assert!(one(&above, &good(), &Attachment::default()).contains("the MTU is 3499"));
        let frags = Attachment { frags: true, ..Attachment::default() };
        assert!(warnings(&above, &good(), &frags).is_empty());
    }

    #[test]
    fn one_queue_matters_to_several_cpus() {
        let nic = |used, max, combined, cpus| NicFeatures {
            rx_queues: Some(RxQueues { used, max, combined }),
            cpus,
            ..good()
        };
        let none = Attachment::default();
        assert!(one(&link(), &nic(1, 8, true, 4), &none).contains("`ethtool -L eth0 combined 4`"));
        assert!(one(&link(), &nic(1, 2, false, 4), &none).contains("`ethtool -L eth0 rx 2`"));
        assert!(one(&link(), &nic(1, 1, true, 4), &none).contains("offers no more"));
        assert!(warnings(&link(), &nic(1, 1, true, 1), &none).is_empty());
        assert!(warnings(&link(), &nic(2, 8, true, 4), &none).is_empty());
    }

    #[test]
    fn foreign_programs_are_named_and_ours_are_not() {
        let generic = AttachedXdp { mode: AttachedMode::Generic, program_id: 17 };
        let native = AttachedXdp { mode: AttachedMode::Native, program_id: 18 };
        let link = LinkInfo { xdp: vec![generic, native], ..link() };
        let ours = Attachment { own_programs: BTreeSet::from([18]), ..Attachment::default() };
        let warning = one(&link, &good(), &ours);
        assert!(warning.contains("id 17, generic"), "{warning}");
        assert!(warning.contains("`ip link set dev eth0 xdpgeneric off`"), "{warning}");
    }
}
