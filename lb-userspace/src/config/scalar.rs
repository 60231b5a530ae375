//! One scalar of the file -> one value, or what is wrong with it and how to mend it. Pure.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::error::shown;

/// A scalar as written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar<'s> {
    /// After YAML's own unquoting.
    pub text: &'s str,
    /// Not quoted.
    pub plain: bool,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Names the value and the reason.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Wrong {
    /// With a mend.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }
}

/// The word of `words` that was probably meant.
pub(super) fn did_you_mean<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    if word.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let distance = |known: &str| strsim::damerau_levenshtein(&word, &plain(known));
    let limit = (word.chars().count() / 3).max(1);
    words.iter().copied().min_by_key(|known| distance(known)).filter(|known| distance(known) <= limit)
}

/// A whole number in decimal digits.
pub(super) fn integer(scalar: Scalar<'_>, range: RangeInclusive<u32>) -> Result<u32, Wrong> {
    let (low, high) = (*range.start(), *range.end());
    let text = scalar.text;
    let allowed = format!("a whole number from {low} to {high}");
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !scalar.plain && digits {
        return Err(Wrong::new(
            format!("expected a number, found the text \"{}\"", shown(text)),
            "remove the quotes",
        ));
    }
    if !digits {
        return Err(Wrong::new(
            format!("`{}` is not a whole number", shown(text)),
            format!("write {allowed}"),
        ));
    }
    if text.len() > 1 && text.starts_with('0') {
        let help = "other programs read such a number as octal: write it without the leading zero";
        return Err(Wrong::new(format!("`{}` has a leading zero", shown(text)), help));
    }
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Wrong::new(format!("{} is out of range", shown(text)), format!("write {allowed}"))),
    }
}

/// [`integer`] from 1 to 65,535.
pub(super) fn port(scalar: Scalar<'_>) -> Result<u16, Wrong> {
    integer(scalar, 1..=65_535).map(|port| port as u16)
}

/// A weight: 1 to 65,535; zero has another meaning elsewhere, so it gets its own mend.
pub(super) fn weight(scalar: Scalar<'_>) -> Result<u32, Wrong> {
    if scalar.text == "0" {
        let help = "a backend that shall take no new connections has `state: drain` (or `disabled`)";
        return Err(Wrong::new("a weight of 0 is not allowed", help));
    }
    integer(scalar, 1..=65_535)
}

/// A prime from 3 to 2^24.
pub(super) fn prime(scalar: Scalar<'_>) -> Result<u32, Wrong> {
    const LARGEST: u32 = 16_777_213;
    let number = integer(scalar, 3..=LARGEST)?;
    if is_prime(number) {
        return Ok(number);
    }
    let below = (2..number).rev().find(|n| is_prime(*n)).unwrap_or(3).max(3);
    let above = (number..=LARGEST).find(|n| is_prime(*n)).unwrap_or(LARGEST);
    Err(Wrong::new(
        format!("{number} is not a prime"),
        format!("the primes next to it are {below} and {above}"),
    ))
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|d| !number.is_multiple_of(d))
}

/// A number with a unit: `ms`, `s`, `m` or `h`; one decimal point is allowed.
pub(super) fn duration(scalar: Scalar<'_>, range: &RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let text = scalar.text;
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let not_one = || {
        let help = "write one number and its unit: 500ms, 2s, 5m or 1h";
        Wrong::new(format!("`{}` is not a duration", shown(text)), help)
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || number.len() > 12 {
        return Err(not_one());
    }
    let milliseconds: f64 = match unit {
        "" => {
            let help = format!("write {number}s for seconds; units are ms, s, m and h");
            return Err(Wrong::new(format!("the duration `{number}` has no unit"), help));
        }
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return Err(not_one()),
    };
    let number: f64 = number.parse().map_err(|_| not_one())?;
    let duration = Duration::from_micros((number * milliseconds * 1000.0).round() as u64);
    if !range.contains(&duration) {
        let help = format!("write {} to {}", human(*range.start()), human(*range.end()));
        return Err(Wrong::new(format!("the duration `{}` is out of range", shown(text)), help));
    }
    Ok(duration)
}

/// A duration as the file writes it.
pub(super) fn human(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        ms if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        ms if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms if ms > 1000 => format!("{}s", ms as f64 / 1000.0),
        ms => format!("{ms}ms"),
    }
}

/// One of a few words; `later` are words of the format that this version cannot do.
pub(super) fn choice<T: Copy>(scalar: Scalar<'_>, words: &[(&str, T)], later: &[&str]) -> Result<T, Wrong> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == scalar.text) {
        return Ok(*value);
    }
    let valid: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let list = format!("valid values: {}", valid.join(", "));
    let value = shown(scalar.text);
    if later.contains(&scalar.text) {
        return Err(Wrong::new(format!("`{value}` is not supported by this version"), list));
    }
    match did_you_mean(scalar.text, &valid) {
        Some(word) => Err(Wrong::new(
            format!("`{value}` is not a valid value"),
            format!("did you mean `{word}`? ({list})"),
        )),
        None => Err(Wrong::new(format!("`{value}` is not a valid value"), list)),
    }
}

/// The name of a service or backend: `[a-z0-9][a-z0-9._-]{0,62}`.
pub(super) fn name(scalar: Scalar<'_>) -> Result<String, Wrong> {
    let text = scalar.text;
    let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let other = |byte: &u8| first(byte) || b"._-".contains(byte);
    if text.len() <= 63 && text.bytes().all(|byte| other(&byte)) && text.as_bytes().first().is_some_and(first)
    {
        return Ok(text.to_owned());
    }
    let rule = "names have 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit";
    let mended: String = text.to_ascii_lowercase().replace([' ', '/', ':'], "-");
    let mended = mended.trim_start_matches(['.', '_', '-']);
    let mended_is_right = mended.len() <= 63 && !mended.is_empty() && mended.bytes().all(|byte| other(&byte));
    let help = if mended_is_right { format!("write `{mended}`: {rule}") } else { rule.to_owned() };
    Err(Wrong::new(format!("`{}` is not a valid name", shown(text)), help))
}

/// The kernel's name of an interface (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes, no `/`, `:` or space.
pub(super) fn interface_name(scalar: Scalar<'_>) -> Result<String, Wrong> {
    let text = scalar.text;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if (1..=15).contains(&text.len()) && !matches!(text, "." | "..") && !text.contains(bad) {
        return Ok(text.to_owned());
    }
    let help = "interface names have 1 to 15 bytes without spaces, `/` and `:`; `ip link` lists them";
    Err(Wrong::new(format!("`{}` is not the name of an interface", shown(text)), help))
}

/// The path of the control socket.
pub(super) fn socket_path(scalar: Scalar<'_>) -> Result<PathBuf, Wrong> {
    // sizeof(sun_path) is 108, with the final zero (unix(7)).
    const LONGEST: usize = 107;
    let text = scalar.text;
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        let help = "write an absolute path, such as /run/xlb/xlb.sock";
        return Err(Wrong::new(format!("`{}` is not the path of a socket", shown(text)), help));
    }
    if text.len() > LONGEST {
        let help = format!("the kernel takes {LONGEST} bytes");
        return Err(Wrong::new(format!("the path of the socket has {} bytes", text.len()), help));
    }
    Ok(PathBuf::from(text))
}

/// The address of the HTTP server; `off` is `None`.
pub(super) fn admin_listen(scalar: Scalar<'_>) -> Result<Option<SocketAddr>, Wrong> {
    if scalar.text == "off" {
        return Ok(None);
    }
    scalar.text.parse().map(Some).map_err(|_| {
        let help = "write an IP address and a port, such as 127.0.0.1:9180 or [::1]:9180, or `off`";
        Wrong::new(format!("`{}` is not an address to listen on", shown(scalar.text)), help)
    })
}

/// The path of an HTTP probe.
pub(super) fn http_path(scalar: Scalar<'_>) -> Result<String, Wrong> {
    let text = scalar.text;
    if !text.starts_with('/') {
        return Err(Wrong::new(
            format!("the path `{}` does not begin with `/`", shown(text)),
            format!("write `/{}`", shown(text.trim_start_matches("./"))),
        ));
    }
    if text.len() > 1024 || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('#') {
        let help = "up to 1024 visible ASCII characters without `#`; others are written as %20";
        return Err(Wrong::new(format!("`{}` is not a path for HTTP", shown(text)), help));
    }
    Ok(text.to_owned())
}

/// The `Host` of an HTTP probe: a name or address, with or without port.
pub(super) fn http_host(scalar: Scalar<'_>) -> Result<String, Wrong> {
    let text = scalar.text;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let help = "write the name of the site alone, such as www.example.org or www.example.org:8080";
    Err(Wrong::new(format!("`{}` is not a host", shown(text)), help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar<'_> {
        Scalar { text, plain: true }
    }

    #[test]
    fn durations() {
        let all = Duration::ZERO..=Duration::from_hours(24);
        for (text, ms) in
            [("0s", 0), ("500ms", 500), ("2s", 2000), ("1.5s", 1500), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(plain(text), &all), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1d",
            "1 s",
            "1.s",
            ".5s",
            "1m30s",
            "1e3s",
            "1S",
            "99999999999999999s",
            "25h",
        ] {
            assert!(duration(plain(text), &all).is_err(), "{text}");
        }
        assert_eq!(human(Duration::from_secs(90)), "90s");
        assert_eq!(human(Duration::from_mins(5)), "5m");
        assert_eq!(human(Duration::from_millis(11_500)), "11.5s");
    }

    #[test]
    fn integers_are_decimal() {
        assert_eq!(integer(plain("80"), 1..=100), Ok(80));
        for text in ["", "0800", "1e3", "0x10", "-1", "+1", "1_000", "22:30", "101", "0", "4294967296", "８"]
        {
            assert!(integer(plain(text), 1..=100).is_err(), "{text}");
        }
        assert!(integer(Scalar { text: "80", plain: false }, 1..=100).is_err());
    }

    #[test]
    fn primes() {
        let small: Vec<u32> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(small, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert_eq!(prime(plain("65537")), Ok(65_537));
        assert_eq!(prime(plain("16777213")), Ok(16_777_213));
        let help = prime(plain("65536")).expect_err("not a prime").help;
        assert_eq!(help.as_deref(), Some("the primes next to it are 65521 and 65537"));
    }

    #[test]
    fn names() {
        for text in ["web", "0", "a.b_c-d", "10.0.0.1", &"x".repeat(63)] {
            assert!(name(plain(text)).is_ok(), "{text}");
        }
        for text in ["", "Web", "-a", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(name(plain(text)).is_err(), "{text}");
        }
        assert!(name(plain("My App")).expect_err("bad").help.expect("help").contains("`my-app`"));
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(did_you_mean("helth", &["health", "hash"]), Some("health"));
        assert_eq!(did_you_mean("ringSize", &["ring_size"]), Some("ring_size"));
        assert_eq!(did_you_mean("drain-timeout", &["drain_timeout", "idle_timeout"]), Some("drain_timeout"));
        assert_eq!(did_you_mean("TCP", &["tcp", "udp"]), Some("tcp"));
        assert_eq!(did_you_mean("colour", &["health", "hash"]), None);
    }
}
