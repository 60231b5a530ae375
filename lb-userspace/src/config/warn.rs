//! Warnings: what is valid, and will surprise someone.

use std::time::Duration;

use super::{
    error::{KeyPath, Report},
    file::{File, ServiceFile},
    scalar::human,
    spec::{AdminState, BackendSpec, Check, Ports, Protocol, ServiceSpec},
};

/// A failure that takes longer to be noticed is worth a warning.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);
/// Slots for each backend below which shares are visibly uneven (Maglev, NSDI 2016, 5.3: 100 for 1 %).
const SLOTS_PER_BACKEND: usize = 100;

/// Warns of what concerns the whole file.
pub(super) fn of_file(file: &File, report: &mut Report<'_>) {
    if let (Some([]), Some(at)) = (file.services.given().map(Vec::as_slice), file.services.at())
        && !report.has_errors()
    {
        report.warning(
            at,
            &KeyPath::Root.key("services"),
            "there are no services: every packet passes",
            None,
        );
    }
    if let (Some(Some(address)), Some(at)) = (file.admin_listen.given(), file.admin_listen.at())
        && !address.ip().is_loopback()
    {
        let message = format!("everyone who reaches {address} can read the services and their counters");
        let help = "use 127.0.0.1 unless a firewall says who may connect";
        report.warning(at, &KeyPath::Root.key("admin").key("listen"), message, Some(help.to_owned()));
    }
}

/// Warns of what concerns one service.
pub(super) fn of_service(
    service: &ServiceSpec,
    written: &ServiceFile,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) {
    let name_at = written.name.at().unwrap_or(written.at);
    let health_at = written.keys.health.at.unwrap_or(name_at);
    let backends_path = path.key("backends");
    if let Some((message, help)) = too_few(service) {
        report.warning(name_at, &backends_path, message, Some(help));
    }
    if let Some(message) = one_address(service) {
        let help =
            "use servers on different machines: the loss of this one takes the whole service".to_owned();
        report.warning(name_at, &backends_path, message, Some(help));
    }
    let worst = service.health.worst_detection();
    if worst > DETECTION_LIMIT {
        let message =
            format!("a dead backend of service `{}` is noticed after up to {}", service.name, human(worst));
        let help = "lower `interval`, `timeout` or `fall`: until then its connections fail".to_owned();
        report.warning(health_at, &path.key("health"), message, Some(help));
    }
    let ring = service.ring_size as usize;
    // A ring with fewer slots than backends is an error, reported elsewhere.
    if (service.backends.len()..SLOTS_PER_BACKEND * service.backends.len()).contains(&ring) {
        let message =
            format!("a ring of {ring} slots for {} backends gives uneven shares", service.backends.len());
        let help = format!("use a prime above {}", SLOTS_PER_BACKEND * service.backends.len());
        let at = written.keys.ring_size.at().unwrap_or(name_at);
        report.warning(at, &path.key("ring_size"), message, Some(help));
    }
    if probes_udp_port(service) {
        let message = format!(
            "probes of service `{}` make TCP connections to port {}, where it serves UDP only",
            service.name, service.health.port
        );
        let help = "add `port` to `health` if something else answers on TCP, or use `type: none`".to_owned();
        report.warning(health_at, &path.key("health"), message, Some(help));
    }
}

/// Fewer than three backends, and what the loss of one would do to the others.
fn too_few(service: &ServiceSpec) -> Option<(String, String)> {
    let usable: Vec<&BackendSpec> =
        service.backends.iter().filter(|b| b.state != AdminState::Disabled).collect();
    let help = "use three servers: the other two then take over half as much again each".to_owned();
    let name = &service.name;
    match usable[..] {
        [] => Some((
            format!("all backends of service `{name}` are disabled: nobody takes its connections"),
            "set the `state` of some to `active`".to_owned(),
        )),
        [only] => Some((
            format!(
                "service `{name}` has one backend: if {} is lost, nobody takes its connections",
                only.name
            ),
            help,
        )),
        [a, b] => {
            // The loss of the heavier one hits harder.
            let (lost, left) = if a.weight >= b.weight { (a, b) } else { (b, a) };
            let more = 100 * u64::from(lost.weight) / u64::from(left.weight);
            let message = format!(
                "service `{name}` has two backends: if {} is lost, {} gets {more} % more load",
                lost.name, left.name
            );
            Some((message, help))
        }
        _ => None,
    }
}

/// Several backends, all with the same address (they differ by port then).
fn one_address(service: &ServiceSpec) -> Option<String> {
    let [first, others @ ..] = &service.backends[..] else { return None };
    let same = !others.is_empty() && others.iter().all(|backend| backend.address == first.address);
    same.then(|| {
        format!("all backends of service `{}` are behind one address, {}", service.name, first.address)
    })
}

/// Whether probes make TCP connections to a port that the service uses for UDP only.
fn probes_udp_port(service: &ServiceSpec) -> bool {
    let port = service.health.port;
    let serves = |protocol| {
        service.listen.iter().any(|listen| {
            let has_port = match listen.ports {
                Ports::Any => false,
                Ports::Range(first, last) => (first..=last).contains(&port),
            };
            listen.protocol == protocol && has_port
        })
    };
    service.health.check != Check::None && serves(Protocol::Udp) && !serves(Protocol::Tcp)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Loaded, parse};

    fn load(listen: &str, health: &str, backends: &[&str]) -> Loaded {
        let backends = backends.join("}, {");
        let text = format!(
            "interfaces: [eth0]\nservices:\n  - name: web\n    listen: [\"{listen}\"]\n    forward: l2\n    \
             health: {{{health}}}\n    backends: [{{{backends}}}]\n"
        );
        parse(&text, Path::new("f")).expect("valid")
    }

    fn warnings(listen: &str, health: &str, backends: &[&str]) -> Vec<String> {
        load(listen, health, backends).warnings.into_iter().map(|w| w.message).collect()
    }

    const THREE: [&str; 3] = ["address: 10.0.0.1", "address: 10.0.0.2", "address: 10.0.0.3"];
    const TCP: &str = "192.0.2.10:80/tcp";

    #[test]
    fn three_backends_with_the_defaults_are_fine() {
        assert_eq!(warnings(TCP, "type: tcp", &THREE), Vec::<String>::new());
    }

    #[test]
    fn the_loss_of_one_of_few_is_computed_from_the_weights() {
        let two = ["name: a, address: 10.0.0.1, weight: 300", "name: b, address: 10.0.0.2"];
        assert_eq!(
            warnings(TCP, "", &two),
            ["service `web` has two backends: if a is lost, b gets 300 % more load"]
        );
        assert!(warnings(TCP, "", &two[..1])[0].contains("has one backend"));
        let disabled = ["address: 10.0.0.1, state: disabled", THREE[1], THREE[2]];
        assert!(warnings(TCP, "", &disabled)[0].contains("has two backends"));
        assert!(warnings(TCP, "", &disabled[..1])[0].contains("all backends"));
    }

    #[test]
    fn slow_detection_is_warned_of_and_the_limit_itself_is_not() {
        assert_eq!(warnings(TCP, "interval: 6s, timeout: 1s", &THREE), Vec::<String>::new());
        let slow = warnings(TCP, "interval: 10s, timeout: 1s", &THREE);
        assert_eq!(slow, ["a dead backend of service `web` is noticed after up to 16s"]);
        assert_eq!(warnings(TCP, "type: none, interval: 10s", &THREE), Vec::<String>::new());
        assert!(warnings(TCP, "timeout: 5s", &THREE)[0].contains("17s"));
    }

    #[test]
    fn tcp_probes_of_a_udp_service_are_warned_of() {
        assert!(warnings("192.0.2.10:53/udp", "", &THREE)[0].contains("UDP only"));
        assert_eq!(warnings("192.0.2.10:53/udp", "port: 8080", &THREE), Vec::<String>::new());
        assert_eq!(warnings("192.0.2.10:53/udp", "type: none", &THREE), Vec::<String>::new());
    }

    #[test]
    fn one_address_behind_all_backends_is_warned_of() {
        let mut service = load(TCP, "", &THREE).spec.services.remove(0);
        assert_eq!(one_address(&service), None);
        for (port, backend) in (8000..).zip(&mut service.backends) {
            (backend.address, backend.port) = ([10, 0, 0, 1].into(), Some(port));
        }
        assert!(one_address(&service).expect("a warning").contains("10.0.0.1"));
    }
}
