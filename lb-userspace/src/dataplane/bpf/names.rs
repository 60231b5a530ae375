//! Names of pins. A BPF file system takes no dots in names, interfaces do.

/// The directory of this layout's pins.
pub(super) fn version_dir() -> String {
    format!("v{}", lb_common::abi::LAYOUT_VERSION)
}

/// Whether a directory has this form of name: the pins of some version of the layout.
pub(super) fn is_version_dir(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The pin of an interface's link: `link-eth0%2E7` for `eth0.7`.
pub(super) fn link(interface: &str) -> String {
    format!("link-{}", interface.replace('%', "%25").replace('.', "%2E"))
}

/// The interface whose link has this pin, if it is one.
pub(super) fn interface(pin: &str) -> Option<String> {
    let escaped = pin.strip_prefix("link-").filter(|name| !name.is_empty())?;
    Some(escaped.replace("%2E", ".").replace("%25", "%"))
}

/// Where a pin stands until it takes the place of an older one. Never the name of a pin itself.
pub(super) fn temporary(pin: &str) -> String {
    format!("new-{pin}")
}

/// The pin that this temporary name is for.
pub(super) fn made_for(temporary: &str) -> Option<&str> {
    temporary.strip_prefix("new-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_have_no_dots_and_lead_back() {
        assert_eq!(link("eth0"), "link-eth0");
        assert_eq!(link("eth0.7"), "link-eth0%2E7");
        for name in ["eth0", "eth0.7", "a%2Eb", "%", "%25", "..", "v1", "link-x", "new-x"] {
            let pin = link(name);
            assert!(!pin.contains('.'), "{pin}");
            assert_eq!(interface(&pin).as_deref(), Some(name));
            assert_eq!(interface(&temporary(&pin)), None);
            assert_eq!(made_for(&temporary(&pin)), Some(&*pin));
            assert_eq!(made_for(&pin), None);
        }
        assert_eq!(interface("prog"), None);
        assert_eq!(interface("link-"), None);
    }

    #[test]
    fn directories_of_versions_are_known_without_knowing_the_version() {
        for (name, is) in
            [("v1", true), ("v27", true), ("v", false), ("v1x", false), ("maps", false), ("1", false)]
        {
            assert_eq!(is_version_dir(name), is, "{name}");
        }
        assert!(is_version_dir(&version_dir()));
    }
}
