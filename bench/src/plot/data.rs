//! What pictures are drawn of: the one place that knows titles, columns and names of the other parts' tables.

use crate::report::{Report, Row, Section};

/// What a curve is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A balancer.
    Balancer,
    /// What any program would need.
    Floor,
}

/// A line of a picture.
#[derive(Debug, PartialEq)]
pub struct Curve {
    /// As in the legend.
    pub name: String,
    /// Of what.
    pub kind: Kind,
    /// Flows, and ns a packet; by flows.
    pub points: Vec<(f64, f64)>,
}

/// A picture of bars.
#[derive(Debug, PartialEq)]
pub struct Bars {
    /// The load.
    pub title: String,
    /// In the table's order.
    pub bars: Vec<Bar>,
}

/// One of them.
#[derive(Debug, PartialEq)]
pub struct Bar {
    /// Of which balancer.
    pub name: String,
    /// Its median.
    pub value: f64,
    /// Its lower quartile.
    pub from: f64,
    /// Its upper quartile.
    pub to: f64,
}

/// Cost over flows of settled slots, then the floors; nothing if that was not measured.
pub fn packet_cost(report: &Report) -> Vec<Curve> {
    let Some(settled) = section(report, "Settled slots") else { return Vec::new() };
    let mut curves: Vec<Curve> = Vec::new();
    for row in &settled.rows {
        // `IPv4 l2, 1,000 flows`
        let Some((name, flows)) = row.case.split_once(", ") else { continue };
        let (Some(flows), Some(ns)) = (number(flows), value(settled, row, "ns")) else { continue };
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push((flows, ns)),
            None => {
                curves.push(Curve { name: name.into(), kind: Kind::Balancer, points: vec![(flows, ns)] });
            }
        }
    }
    let flows = || curves.iter().flat_map(|curve| &curve.points).map(|(flows, _)| *flows);
    let (least, most) = (flows().fold(f64::MAX, f64::min), flows().fold(0.0, f64::max));
    let floors = section(report, "Without a balancer").into_iter().flat_map(|section| {
        section.rows.iter().filter_map(move |row| {
            // `IPv4: the floor: ...`
            let (family, what) = row.case.split_once(": ")?;
            let ns = what.starts_with("the floor:").then(|| value(section, row, "ns"))??;
            let points = vec![(least, ns), (most, ns)];
            Some(Curve { name: format!("{family} floor"), kind: Kind::Floor, points })
        })
    });
    let floors: Vec<_> = floors.collect();
    curves.extend(floors);
    curves
}

/// What balancers add to requests with a connection for each, if that was measured.
pub fn request_cost(report: &Report) -> Option<Bars> {
    let section = section(report, "Requests: ")?;
    let bar = |row: &Row| {
        let of = |column| value(section, row, column);
        Some(Bar { name: row.case.clone(), value: of("added")?, from: of("from")?, to: of("to")? })
    };
    let bars: Vec<_> = section.rows.iter().filter_map(bar).collect();
    (!bars.is_empty()).then(|| Bars { title: section.title["Requests: ".len()..].to_lowercase(), bars })
}

/// The first section whose title starts so.
fn section<'a>(report: &'a Report, start: &str) -> Option<&'a Section> {
    report.sections.iter().find(|section| section.title.starts_with(start))
}

/// A figure by the name of its column; the first column is the name of the row.
fn value(section: &Section, row: &Row, column: &str) -> Option<f64> {
    let at = section.columns.iter().skip(1).position(|name| name == column)?;
    row.values.get(at).copied()?
}

/// Of `1,000 flows`.
fn number(text: &str) -> Option<f64> {
    text.split(' ').next()?.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_found_by_the_names_of_rows() {
        let mut report = Report::new(true);
        let mut settled = Section::new("Settled slots; 1 service, 100 backends", &["", "ns", "x floor"]);
        settled.row("IPv4 l2, 1 flow", [Some(20.0), Some(1.0)]);
        settled.row("IPv4 l2, 1,000 flows", [Some(22.0), Some(1.1)]);
        settled.row("IPv4 ipip, 1 flow", [Some(30.0), Some(1.5)]);
        let mut floors = Section::new("Without a balancer", &["", "ns"]);
        floors.row("IPv4: the driver with a stub, which all figures are beyond", [Some(50.0)]);
        floors.row("IPv4: the floor: parse what must be parsed", [Some(19.0)]);
        floors.row("IPv4: the floor with xlb's parser", [Some(21.0)]);
        report.sections = vec![settled, floors];
        let curve = |name: &str, kind, points| Curve { name: name.into(), kind, points };
        let expected = [
            curve("IPv4 l2", Kind::Balancer, vec![(1.0, 20.0), (1000.0, 22.0)]),
            curve("IPv4 ipip", Kind::Balancer, vec![(1.0, 30.0)]),
            curve("IPv4 floor", Kind::Floor, vec![(1.0, 19.0), (1000.0, 19.0)]),
        ];
        assert_eq!(packet_cost(&report), expected);
        assert_eq!(request_cost(&report), None);
    }

    #[test]
    fn bars_are_of_those_that_add_something() {
        let mut report = Report::new(true);
        let mut requests =
            Section::new("Requests: One each", &["through", "requests/s", "added", "from", "to"]);
        requests.row("direct", [Some(3000.0), None, None, None]);
        requests.row("nginx", [Some(3000.0), Some(40.0), Some(38.0), Some(43.0)]);
        report.sections = vec![requests];
        let bar = Bar { name: "nginx".into(), value: 40.0, from: 38.0, to: 43.0 };
        assert_eq!(request_cost(&report), Some(Bars { title: "one each".into(), bars: vec![bar] }));
        assert_eq!(packet_cost(&report), []);
    }
}
