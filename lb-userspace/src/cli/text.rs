//! Small texts: escaped, and numbers as people read them.

use std::{borrow::Cow, fmt::Write};

/// The text without what could move a terminal's cursor, change its colours or the order of what is read.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    escape_but(text, |_| false)
}

/// The same, but line breaks stay.
pub(super) fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_but(text, |c| c == '\n')
}

fn escape_but(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let escaped = |c: char| !keep(c) && (c.is_control() || is_invisible(c));
    if !text.chars().any(escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if escaped(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Line and paragraph separators, and characters without a width of which some reorder text (Unicode, UAX 9).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The two largest units: `12s`, `4m 5s`, `3h 20m`, `2d 4h`. Below ten seconds with a tenth.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86400, whole / 3600 % 24),
    }
}

/// With separators between thousands: `1,234,567`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `33.3%`, or `-`.
pub(super) fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

/// `1,235`, below ten `7.5`, or `-`.
pub(super) fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => number(rate.round() as u64),
    }
}

/// The moment in UTC: `2026-08-22T10:11:12.345Z`.
pub(super) fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let mut out = format!("{year:04}-{month:02}-{day:02}T");
    let (s, ms) = (ms / 1000, ms % 1000);
    // Writing to a `String` does not fail.
    let _ = write!(out, "{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60);
    out
}

/// Year, month and day of the days since 1970-01-01: Howard Hinnant's `civil_from_days`, for days after it.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years start on March 1st here, so that the leap day is the last; eras are 400 years.
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = z / 146_097 * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminals_get_no_orders() {
        assert_eq!(escape("plain äöü"), "plain äöü");
        assert_eq!(escape("a\x1b[31mred\nb\u{9b}"), r"a\u{1b}[31mred\nb\u{9b}");
        assert_eq!(escape("a\u{202e}b\u{2028}"), r"a\u{202e}b\u{2028}");
        assert_eq!(escape_lines("a\nb\r"), "a\nb\\r");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left(text in any::<String>()) {
            prop_assert!(!escape(&text).chars().any(char::is_control));
        }
    }

    #[test]
    fn figures_are_readable() {
        let durations =
            [(0.04, "0.0s"), (9.96, "10s"), (59.6, "1m 0s"), (245.0, "4m 5s"), (12_000.0, "3h 20m")];
        for (seconds, text) in durations {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(187_200.0), "2d 4h");
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(value), text);
        }
        assert_eq!((share(Some(1.0 / 3.0)), share(None)), ("33.3%".to_owned(), "-".to_owned()));
        assert_eq!(
            [rate(None), rate(Some(0.0)), rate(Some(7.51)), rate(Some(1234.5))],
            ["-", "0", "7.5", "1,235"]
        );
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(unix_s * 1000), text);
        }
        assert_eq!(utc(1_787_393_472_345), "2026-08-22T10:11:12.345Z");
    }
}
