//! Typed reading of the tree: maps with known keys, lists, scalars. Reports what is wrong and goes on.

use super::{
    error::{KeyPath, Report, Span, shown},
    scalar::{Scalar, Wrong, did_you_mean},
    yaml::{Kind, Node},
};

/// A value as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Field<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// It is there and wrong, which has been reported.
    Wrong,
    /// What it says, and where.
    Given(T, Span),
}

impl<T> Field<T> {
    /// This, or if the key is not there, `other`.
    pub fn or<'f>(&'f self, other: &'f Self) -> &'f Self {
        match self {
            Self::Absent => other,
            _ => self,
        }
    }

    /// What it says; `None` if absent or wrong.
    pub fn given(&self) -> Option<&T> {
        match self {
            Self::Given(value, _) => Some(value),
            _ => None,
        }
    }

    /// Where it is, if it is there and right.
    pub fn at(&self) -> Option<Span> {
        match self {
            Self::Given(_, at) => Some(*at),
            _ => None,
        }
    }
}

impl<T: Clone> Field<T> {
    /// What it says, or `default`. A wrong one gives the default, too: the file is refused anyway.
    pub fn value_or(&self, default: T) -> T {
        self.given().cloned().unwrap_or(default)
    }
}

impl<T: Clone + Default> Field<T> {
    /// What it says, or the default of its type.
    pub fn value_or_default(&self) -> T {
        self.given().cloned().unwrap_or_default()
    }
}

/// The keys of a kind of map.
pub(super) struct Keys {
    /// What the map describes, with article: `a service`.
    pub of: &'static str,
    /// All that are valid, in the order of the documentation.
    pub valid: &'static [&'static str],
    /// Words from other balancers and likely mistakes: key and help.
    pub hints: &'static [(&'static str, &'static str)],
}

/// An opened map: every key is valid and unique, or has been reported.
#[derive(Clone, Copy)]
pub(super) struct Map<'n, 't> {
    entries: &'n [(Node<'t>, Node<'t>)],
    /// Where the map is.
    pub at: Span,
}

impl<'n, 't> Map<'n, 't> {
    /// Opens a node as a map with `keys`; `None` if it is none.
    pub fn open(
        node: &'n Node<'t>,
        path: &KeyPath<'_>,
        keys: &Keys,
        report: &mut Report<'_>,
    ) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            let help = format!("{} is a map with the keys {}", keys.of, keys.valid.join(", "));
            return mismatch(node, path, "a map", Some(help), report);
        };
        let mut seen: Vec<(&str, Span)> = Vec::with_capacity(entries.len());
        for (key, _) in entries {
            let Kind::Scalar { text, .. } = &key.kind else {
                if !matches!(key.kind, Kind::Refused) {
                    let message = format!("a key must be text, found {}", key.describe());
                    report.error(key.at, path, message, Some("write `key: value`".to_owned()));
                }
                continue;
            };
            if !keys.valid.contains(&&**text) {
                report_unknown(text, key.at, path, keys, report);
            }
            if let Some((_, first)) = seen.iter().find(|(name, _)| *name == &**text) {
                let message =
                    format!("key `{}` is given twice, first at {}", shown(text), report.line(*first));
                report.error(key.at, &path.key(text), message, Some("remove one of them".to_owned()));
            } else if seen.len() < keys.valid.len() {
                seen.push((text, key.at));
            }
        }
        Some(Self { entries, at: node.at })
    }

    /// Key and value of the first entry with this key.
    pub fn entry(&self, key: &str) -> Option<(&'n Node<'t>, &'n Node<'t>)> {
        let is_key = |node: &Node<'_>| matches!(&node.kind, Kind::Scalar { text, .. } if text == key);
        self.entries.iter().find(|(k, _)| is_key(k)).map(|(k, v)| (k, v))
    }

    /// The value of a key, reported if it is empty.
    pub fn value(&self, key: &str, path: &KeyPath<'_>, report: &mut Report<'_>) -> Field<&'n Node<'t>> {
        let Some((key_node, value)) = self.entry(key) else { return Field::Absent };
        if matches!(value.kind, Kind::Refused) {
            return Field::Wrong;
        }
        if value.is_null() {
            let help = format!("give it a value, or remove `{key}` if it is not required");
            report.error(key_node.at, &path.key(key), format!("`{key}` has no value"), Some(help));
            return Field::Wrong;
        }
        Field::Given(value, value.at)
    }

    /// A scalar under a key.
    pub fn scalar<T>(
        &self,
        key: &str,
        path: &KeyPath<'_>,
        report: &mut Report<'_>,
        parse: impl FnOnce(Scalar<'_>) -> Result<T, Wrong>,
    ) -> Field<T> {
        match self.value(key, path, report) {
            Field::Absent => Field::Absent,
            Field::Wrong => Field::Wrong,
            Field::Given(node, at) => match scalar(node, &path.key(key), report, parse) {
                Some(value) => Field::Given(value, at),
                None => Field::Wrong,
            },
        }
    }

    /// A list under a key; items that are wrong are reported and left out.
    pub fn list<T>(
        &self,
        key: &str,
        path: &KeyPath<'_>,
        report: &mut Report<'_>,
        mut item: impl FnMut(&'n Node<'t>, usize, &KeyPath<'_>, &mut Report<'_>) -> Option<T>,
    ) -> Field<Vec<T>> {
        let (node, at) = match self.value(key, path, report) {
            Field::Absent => return Field::Absent,
            Field::Wrong => return Field::Wrong,
            Field::Given(node, at) => (node, at),
        };
        let path = path.key(key);
        let Kind::List(items) = &node.kind else {
            let help = match &node.kind {
                Kind::Scalar { text, .. } if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                    format!("write `{key}: [{}]`", shown(text))
                }
                Kind::Scalar { text, .. } => format!("write `{key}: [\"{}\"]`", shown(text)),
                _ => "begin each item with `- `".to_owned(),
            };
            return mismatch(node, &path, "a list", Some(help), report)
                .map_or(Field::Wrong, |()| Field::Wrong);
        };
        let read = items.iter().enumerate().filter_map(|(i, node)| item(node, i, &path.index(i), report));
        Field::Given(read.collect(), at)
    }

    /// Reports an empty list under the key.
    pub fn require_items(&self, key: &str, path: &KeyPath<'_>, help: &str, report: &mut Report<'_>) {
        if let Some((_, Node { kind: Kind::List(items), at })) = self.entry(key)
            && items.is_empty()
        {
            report.error(*at, &path.key(key), format!("`{key}` is empty"), Some(help.to_owned()));
        }
    }

    /// Reports the key if it is not there.
    pub fn require(&self, key: &str, path: &KeyPath<'_>, help: &str, report: &mut Report<'_>) {
        if self.entry(key).is_none() {
            report.error(self.at, path, format!("`{key}` is missing"), Some(help.to_owned()));
        }
    }
}

/// A node as a scalar.
pub(super) fn scalar<T>(
    node: &Node<'_>,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
    parse: impl FnOnce(Scalar<'_>) -> Result<T, Wrong>,
) -> Option<T> {
    let Kind::Scalar { text, plain } = &node.kind else {
        let help = "write one value, in quotes if it contains brackets or a colon";
        return mismatch(node, path, "a single value", Some(help.to_owned()), report);
    };
    match parse(Scalar { text, plain: *plain }) {
        Ok(value) => Some(value),
        Err(Wrong { message, help }) => {
            report.error(node.at, path, message, help);
            None
        }
    }
}

/// Reports a node of the wrong kind.
fn mismatch<T>(
    node: &Node<'_>,
    path: &KeyPath<'_>,
    wanted: &str,
    help: Option<String>,
    report: &mut Report<'_>,
) -> Option<T> {
    if !matches!(node.kind, Kind::Refused) {
        report.error(node.at, path, format!("expected {wanted}, found {}", node.describe()), help);
    }
    None
}

fn report_unknown(key: &str, at: Span, path: &KeyPath<'_>, keys: &Keys, report: &mut Report<'_>) {
    let help = if key == "<<" {
        "merge keys are not supported: put what services share under `defaults`".to_owned()
    } else if let Some((_, hint)) = keys.hints.iter().find(|(word, _)| *word == key) {
        (*hint).to_owned()
    } else {
        let list = format!("valid keys of {}: {}", keys.of, keys.valid.join(", "));
        match did_you_mean(key, keys.valid) {
            Some(word) => format!("did you mean `{word}`? ({list})"),
            None => list,
        }
    };
    report.error(at, &path.key(key), format!("unknown key `{}`", shown(key)), Some(help));
}
