//! Text -> a tree that remembers where everything stood, duplicate keys included.
//!
//! It reads the events of serde-saphyr's own parser rather than deserializing through serde: serde-saphyr stops at
//! the first key that is not text, gives scalars a type before we know which one is wanted (`0800`, `22:30`, `no`),
//! and takes 2.5 times as long for a tree with positions.

use std::borrow::Cow;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle};

use super::{
    error::{KeyPath, Report, Span, shown},
    scalar::Wrong,
};

/// Lists and maps in each other, at most.
const DEPTH: usize = 32;
/// Scalars, lists and maps together, at most: twice what 32,767 backends need, 40 bytes each.
const NODES: usize = 500_000;

/// A node of the file.
pub(super) struct Node<'t> {
    /// What it is.
    pub kind: Kind<'t>,
    /// Where it stands.
    pub at: Span,
}

/// What a node is.
pub(super) enum Kind<'t> {
    /// Text as written (after YAML's own unquoting); `plain` if it was not quoted.
    Scalar { text: Cow<'t, str>, plain: bool },
    /// Items in order.
    List(Vec<Node<'t>>),
    /// Keys and values in order, duplicates included.
    Map(Vec<(Node<'t>, Node<'t>)>),
    /// Something refused that has been reported already.
    Refused,
}

impl Node<'_> {
    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Kind::Scalar { text, .. } => format!("`{}`", shown(text)),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
            Kind::Refused => "something refused".to_owned(),
        }
    }

    /// An empty value, `~` or `null`.
    pub fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => *plain && matches!(&**text, "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }
}

/// A list or map whose end has not been seen.
struct Open<'t> {
    start: Span,
    kind: Kind<'t>,
    /// A key of a map that waits for its value.
    key: Option<Node<'t>>,
}

/// The tree of the only document of `text`; `None` if that was impossible (then `report` has an error).
///
/// Aliases, anchors, tags and merge keys are reported and left out, so nothing is ever expanded.
pub(super) fn tree<'t>(text: &'t str, report: &mut Report<'_>) -> Option<Node<'t>> {
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.set_emit_comments(false);
    let mut builder = Builder { open: Vec::new(), root: None, nodes: 0, documents: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let start = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
                report_syntax(text, start as u32, error.kind(), report);
                return None;
            }
        };
        let at =
            span.byte_range().map_or(Span::default(), |r| Span { start: r.start as u32, end: r.end as u32 });
        if let Err(Wrong { message, help }) = builder.event(event, at, report) {
            report.error(at, &builder.path(), message, help);
            return None;
        }
    }
    if builder.root.as_ref().is_none_or(Node::is_null) {
        let help = "the smallest file is config/minimal.yaml: `interfaces` and `services`";
        report.error(Span::default(), &KeyPath::Root, "the file is empty", Some(help.to_owned()));
        return None;
    }
    builder.root
}

struct Builder<'t> {
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
    nodes: usize,
    documents: usize,
}

impl<'t> Builder<'t> {
    /// Takes one event. An error is a limit that ends the reading.
    fn event(&mut self, event: Event<'t>, at: Span, report: &mut Report<'_>) -> Result<(), Wrong> {
        self.refuse_decoration(&event, at, report);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let help = "remove the second `---` and what follows it";
                    return Err(Wrong::new("the file has more than one YAML document", help));
                }
                Ok(())
            }
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                self.node(Node { kind: Kind::Scalar { text, plain }, at })
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => self.node(Node { kind: Kind::Refused, at }),
            Event::SequenceStart(..) => self.open(Kind::List(Vec::new()), at),
            Event::MappingStart(..) => self.open(Kind::Map(Vec::new()), at),
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            _ => Ok(()),
        }
    }

    fn open(&mut self, kind: Kind<'t>, start: Span) -> Result<(), Wrong> {
        if self.open.len() >= DEPTH {
            let message = format!("lists and maps are nested more than {DEPTH} deep");
            return Err(Wrong::new(message, "no key needs more than six: close the brackets earlier"));
        }
        self.open.push(Open { start, kind, key: None });
        Ok(())
    }

    fn close(&mut self, at: Span) -> Result<(), Wrong> {
        let Some(Open { start, kind, .. }) = self.open.pop() else {
            return Err(Wrong::new("a list or map ends that did not begin", "check the brackets"));
        };
        self.node(Node { kind, at: Span { start: start.start, end: at.end.max(start.end) } })
    }

    fn node(&mut self, node: Node<'t>) -> Result<(), Wrong> {
        self.nodes += 1;
        if self.nodes > NODES {
            let help = "no balancer can use so many: look whether it is the right file";
            return Err(Wrong::new(format!("the file has more than {NODES} values"), help));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { kind: Kind::List(items), .. }) => items.push(node),
            Some(Open { kind: Kind::Map(entries), key, .. }) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            Some(_) => {}
        }
        Ok(())
    }

    /// Reports the parts of YAML that a configuration does not need and that have surprised people.
    fn refuse_decoration(&self, event: &Event<'_>, at: Span, report: &mut Report<'_>) {
        const DEFAULTS: &str = "write the value out, or put what services share under `defaults`";
        let mut refuse = |message, help: &str| report.error(at, &self.path(), message, Some(help.to_owned()));
        if event.anchor_id().is_some_and(|id| id != 0) {
            refuse("anchors (`&name`) are not supported", DEFAULTS);
        }
        if event.is_alias() || matches!(event, Event::UnresolvedAlias(_)) {
            refuse("aliases (`*name`) are not supported", DEFAULTS);
        }
        if event.tag().is_some() {
            refuse("tags (`!name`) are not supported", "remove the tag");
        }
    }

    /// The path of the node that comes next.
    fn path(&self) -> String {
        let steps = self.open.iter().map(|open| match (&open.kind, &open.key) {
            (Kind::List(items), _) => format!("[{}]", items.len()),
            (_, Some(Node { kind: Kind::Scalar { text, .. }, .. })) => format!(".{}", shown(text)),
            _ => String::new(),
        });
        let path: Vec<String> = steps.collect();
        path.concat().trim_start_matches('.').to_owned()
    }
}

fn report_syntax(text: &str, start: u32, kind: &ErrorKind, report: &mut Report<'_>) {
    // The parser often notices only at the next token: a mark at the very end is of more use on the last line.
    let start = start.min(text.trim_end().len() as u32);
    let line_start = text.get(..start as usize).and_then(|t| t.rfind('\n')).map_or(0, |i| i + 1);
    let line = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let help = match kind {
        ErrorKind::RecursionLimitExceeded => format!("lists and maps may be nested {DEPTH} deep"),
        _ if line.contains("]:") => "quote IPv6 listens: \"[2001:db8::10]:80/tcp\"".to_owned(),
        _ if line.contains('\t') || kind.to_string().contains("tab") => {
            "indent with spaces: YAML does not take tabs".to_owned()
        }
        ErrorKind::UnclosedQuotedScalar => "close the quote".to_owned(),
        ErrorKind::DirectiveDisallowed => "remove the line that begins with `%`".to_owned(),
        _ => "look at the brackets, quotes, colons and the indentation here and just above".to_owned(),
    };
    let message = format!("this is not YAML: {kind}");
    report.error(Span { start, end: start + 1 }, &KeyPath::Root, message, Some(help));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The tree as text, with places as byte offsets.
    fn dump(node: &Node<'_>) -> String {
        let children = match &node.kind {
            Kind::Scalar { text, plain } => format!("{}{text}", if *plain { "" } else { "'" }),
            Kind::List(items) => format!("[{}]", items.iter().map(dump).collect::<Vec<_>>().join(", ")),
            Kind::Map(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(k, v)| format!("{}: {}", dump(k), dump(v))).collect();
                format!("{{{}}}", entries.join(", "))
            }
            Kind::Refused => "!".to_owned(),
        };
        format!("{children}@{}", node.at.start)
    }

    fn read(text: &str) -> Result<String, String> {
        let mut report = Report::new(Path::new("f"), text);
        let tree = tree(text, &mut report).map(|node| dump(&node));
        if report.has_errors() {
            Err(report.finish().one_line())
        } else {
            Ok(tree.expect("a tree or an error"))
        }
    }

    #[test]
    fn duplicates_and_places_survive() {
        assert_eq!(
            read("a: 1\nä: [2, \"3\"]\na: {b: 0800}\n").expect("tree"),
            "{a@0: 1@3, ä@5: [2@10, '3@13]@9, a@18: {b@22: 0800@25}@21}@0"
        );
    }

    #[test]
    fn decoration_is_refused_and_nothing_is_expanded() {
        for (text, wanted) in [
            ("a: &x 1\n", "anchors"),
            ("a: *x\n", "aliases"),
            ("a: !!str 1\n", "tags"),
            ("a: 1\n---\nb: 2\n", "more than one"),
            ("# nothing\n", "empty"),
            ("%YAML 1.2\n---\na: 1\n", "directives"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
        assert!(read("---\na: 1\n...\n").is_ok());
    }

    #[test]
    fn depth_is_limited() {
        let nested = |n: usize| format!("a: {}{}", "[".repeat(n), "]".repeat(n));
        assert!(read(&nested(DEPTH - 1)).is_ok());
        assert!(read(&nested(DEPTH)).expect_err("too deep").contains("nested"));
        assert!(read(&"[".repeat(10_000)).expect_err("too deep").contains("nested"));
        assert!(read(&"- ".repeat(10_000)).expect_err("too deep").contains("nested"));
    }
}
