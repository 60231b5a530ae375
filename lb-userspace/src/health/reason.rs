//! What a probe found out, in HAProxy's words.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// The result of one probe, in HAProxy's vocabulary of check results (its management guide, "check_status").
///
/// The numbers are HTTP status codes. Two variants display alike: HAProxy calls every failed connect `L4CON`, but
/// only a refusal says that the server's network is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reason {
    /// `INI`: no probe has ended yet.
    #[default]
    Init,
    /// `NONE`: not probed (`health: none`).
    None,
    /// `L4OK`: the TCP connection was accepted.
    L4Ok,
    /// `L4TOUT`: not connected in time.
    L4Timeout,
    /// `L4CON`: refused (RST, or ICMP port unreachable).
    L4Refused,
    /// `L4CON`: the network says that it cannot get there.
    L4Unreachable,
    /// `L6RSP`: layer 6 (TLS) failed.
    L6Invalid,
    /// `L7OK 200`: an expected answer.
    L7Ok(u16),
    /// `L7TOUT`: connected, but no complete answer in time.
    L7Timeout,
    /// `L7STS 503`: an answer with a status that is not expected.
    L7Status(u16),
    /// `L7RSP`: an answer that breaks the protocol, or ends early.
    L7Invalid,
    /// `SOCKERR`: our own trouble (descriptors, ports, memory, permission). Says nothing about the backend.
    SockErr,
}

/// How a result counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The backend did what was asked of it.
    Pass,
    /// It did not.
    Fail,
    /// Nothing is known: the result does not count.
    Unjudged,
}

impl Reason {
    /// How the result counts.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::None | Self::L4Ok | Self::L7Ok(_) => Verdict::Pass,
            Self::L4Timeout
            | Self::L4Refused
            | Self::L4Unreachable
            | Self::L6Invalid
            | Self::L7Timeout
            | Self::L7Status(_)
            | Self::L7Invalid => Verdict::Fail,
            Self::Init | Self::SockErr => Verdict::Unjudged,
        }
    }

    /// A failure above layer 6: the backend is there but unwell, or asks to be left alone. Its flows may stay.
    pub fn is_layer7_only(self) -> bool {
        matches!(self, Self::L7Timeout | Self::L7Status(_) | Self::L7Invalid)
    }

    /// Whether packets went to the backend and back, whatever it said: a connection was accepted or refused.
    ///
    /// A backend that fails with such a reason does not fail because of our own link.
    pub fn proves_path(self) -> bool {
        match self {
            Self::L4Ok
            | Self::L4Refused
            | Self::L6Invalid
            | Self::L7Ok(_)
            | Self::L7Timeout
            | Self::L7Status(_)
            | Self::L7Invalid => true,
            Self::Init | Self::None | Self::L4Timeout | Self::L4Unreachable | Self::SockErr => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Init => f.pad("INI"),
            Self::None => f.pad("NONE"),
            Self::L4Ok => f.pad("L4OK"),
            Self::L4Timeout => f.pad("L4TOUT"),
            Self::L4Refused | Self::L4Unreachable => f.pad("L4CON"),
            Self::L6Invalid => f.pad("L6RSP"),
            Self::L7Ok(status) => f.pad(&format!("L7OK {status}")),
            Self::L7Timeout => f.pad("L7TOUT"),
            Self::L7Status(status) => f.pad(&format!("L7STS {status}")),
            Self::L7Invalid => f.pad("L7RSP"),
            Self::SockErr => f.pad("SOCKERR"),
        }
    }
}

/// A text that is no [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a health reason")]
pub struct ReasonError;

impl FromStr for Reason {
    type Err = ReasonError;

    /// Reads what `Display` writes; `L4CON` becomes the variant that proves less, `L4Unreachable`.
    fn from_str(text: &str) -> Result<Self, ReasonError> {
        let (code, status) = match text.split_once(' ') {
            Some((code, status)) => (code, Some(status.parse().map_err(|_| ReasonError)?)),
            None => (text, None),
        };
        match (code, status) {
            ("INI", None) => Ok(Self::Init),
            ("NONE", None) => Ok(Self::None),
            ("L4OK", None) => Ok(Self::L4Ok),
            ("L4TOUT", None) => Ok(Self::L4Timeout),
            ("L4CON", None) => Ok(Self::L4Unreachable),
            ("L6RSP", None) => Ok(Self::L6Invalid),
            ("L7OK", Some(status)) => Ok(Self::L7Ok(status)),
            ("L7TOUT", None) => Ok(Self::L7Timeout),
            ("L7STS", Some(status)) => Ok(Self::L7Status(status)),
            ("L7RSP", None) => Ok(Self::L7Invalid),
            ("SOCKERR", None) => Ok(Self::SockErr),
            _ => Err(ReasonError),
        }
    }
}

/// More about a result, for people: at most 256 characters, all of them printable ASCII.
///
/// Parts of it can come from a backend, which must not be able to drive a terminal or forge a log line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail(Box<str>);

impl Detail {
    /// The longest detail, in characters.
    pub const MAX: usize = 256;

    /// Escapes what is not printable ASCII (`\n`, `\u{1b}`) and cuts the result to [`Detail::MAX`].
    pub fn new(text: &str) -> Self {
        let mut out = String::with_capacity(text.len().min(Self::MAX));
        for c in text.chars() {
            if c == ' ' || c.is_ascii_graphic() {
                out.push(c);
            } else {
                out.extend(c.escape_default());
            }
            if out.len() > Self::MAX {
                out.truncate(Self::MAX - 3);
                out.push_str("...");
                break;
            }
        }
        Self(out.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant with its text, verdict, whether it is layer 7 only, and whether it proves the path.
    const TABLE: [(Reason, &str, Verdict, bool, bool); 12] = [
        (Reason::Init, "INI", Verdict::Unjudged, false, false),
        (Reason::None, "NONE", Verdict::Pass, false, false),
        (Reason::L4Ok, "L4OK", Verdict::Pass, false, true),
        (Reason::L4Timeout, "L4TOUT", Verdict::Fail, false, false),
        (Reason::L4Refused, "L4CON", Verdict::Fail, false, true),
        (Reason::L4Unreachable, "L4CON", Verdict::Fail, false, false),
        (Reason::L6Invalid, "L6RSP", Verdict::Fail, false, true),
        (Reason::L7Ok(200), "L7OK 200", Verdict::Pass, false, true),
        (Reason::L7Timeout, "L7TOUT", Verdict::Fail, true, true),
        (Reason::L7Status(503), "L7STS 503", Verdict::Fail, true, true),
        (Reason::L7Invalid, "L7RSP", Verdict::Fail, true, true),
        (Reason::SockErr, "SOCKERR", Verdict::Unjudged, false, false),
    ];

    #[test]
    fn every_reason_has_its_word_and_its_meaning() {
        for (reason, word, verdict, layer7_only, path) in TABLE {
            assert_eq!(reason.to_string(), word);
            assert_eq!(reason.verdict(), verdict, "{word}");
            assert_eq!(reason.is_layer7_only(), layer7_only, "{word}");
            assert_eq!(reason.proves_path(), path, "{word}");
            let read: Reason = word.parse().unwrap();
            assert_eq!(read.to_string(), word);
        }
        assert_eq!("L4CON".parse(), Ok(Reason::L4Unreachable));
        for bad in ["", "L7OK", "L7OK x", "L4OK 200", "l4ok", "L7STS 70000", "UP"] {
            assert_eq!(bad.parse::<Reason>(), Err(ReasonError), "{bad:?}");
        }
    }

    #[test]
    fn details_are_short_and_cannot_drive_a_terminal() {
        assert_eq!(Detail::new("status 503, expected 200").as_str(), "status 503, expected 200");
        assert_eq!(Detail::new("a\nb\u{1b}[2J\u{202e}\u{7f}").as_str(), "a\\nb\\u{1b}[2J\\u{202e}\\u{7f}");
        assert_eq!(Detail::new(&"x".repeat(256)).as_str().len(), 256);
        let cut = Detail::new(&"\u{0}".repeat(10_000));
        assert_eq!(cut.as_str().len(), Detail::MAX);
        assert!(cut.as_str().ends_with("..."));
    }
}
