//! Sizes, times, signals and modes, read as Go's libraries read them.
use crate::text::quote;
use crate::{Error, Result};

/// `1.5g`, `64 MiB`, `1024`: powers of 1024. Follows docker's `go-units`.
pub(super) fn ram_in_bytes(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = (&text[..=last], text[last + 1..].to_lowercase());
    let number = number.strip_suffix(' ').unwrap_or(number);
    let number: f64 = number.parse().ok().filter(|n| *n >= 0.0)?;
    let power = match unit.as_str() {
        "" | "b" => 0,
        unit => {
            let power = "kmgtp".find(unit.chars().next()?)? + 1;
            if !matches!(&unit[1..], "" | "b" | "ib") {
                return None;
            }
            power as i32
        }
    };
    Some((number * 1024f64.powi(power)) as i64)
}

const NANOS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// `1h2m3.5s` in nanoseconds. Follows Go's `time.ParseDuration`.
pub(super) fn duration(text: &str) -> Result<i64> {
    let invalid = || Error::new(format!("time: invalid duration {}", quote(text)));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let whole = digits(rest);
        let (whole, tail) = rest.split_at(whole);
        let (fraction, tail) = match tail.strip_prefix('.') {
            Some(tail) => tail.split_at(digits(tail)),
            None => ("", tail),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        if unit.is_empty() {
            return Err(Error::new(format!("time: missing unit in duration {}", quote(text))));
        }
        let unknown = || Error::new(format!("time: unknown unit {} in duration {}", quote(unit), quote(text)));
        let scale = NANOS.iter().find(|(name, _)| *name == unit).ok_or_else(unknown)?.1;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let part = format!("0.{fraction}").parse::<f64>().unwrap_or(0.0) * scale as f64;
        total = whole.checked_mul(scale).and_then(|n| n.checked_add(part as u64)).and_then(|n| n.checked_add(total)).ok_or_else(invalid)?;
        rest = tail;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}

const SIGNALS: [(&str, i32); 38] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", 34),
    ("RTMAX", 64),
    ("RTMIN+15", 49),
    ("RTMAX-14", 50),
];

/// A signal by number, or by name with or without `SIG`.
pub fn parse_signal(text: &str) -> Result<i32> {
    let invalid = || Error::new(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i64>() {
        return i32::try_from(number).ok().filter(|n| *n != 0).ok_or_else(invalid);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, max: i32| {
        let digits = name.strip_prefix(prefix).filter(|d| !d.starts_with('0') && d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<i32>().ok().filter(|n| (1..=max).contains(n))
    };
    let named = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    named.or_else(|| offset("RTMIN+", 15).map(|n| 34 + n)).or_else(|| offset("RTMAX-", 14).map(|n| 64 - n)).ok_or_else(invalid)
}

/// `--chmod`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    Octal(u32),
    /// Says how to change the mode (`u+x,go=`); passed on as it is.
    Symbolic(String),
}

pub fn parse_chmod(text: &str) -> Result<Chmod> {
    let not_octal = || Error::new(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"));
    if !text.starts_with('+')
        && let Ok(mode) = u32::from_str_radix(text, 8)
    {
        return if mode > 0o7777 { Err(not_octal()) } else { Ok(Chmod::Octal(mode)) };
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(not_octal());
    }
    if is_symbolic_mode(text) { Ok(Chmod::Symbolic(text.to_owned())) } else { Err(Error::new("invalid syntax")) }
}

/// Clauses `[augo]*([-+=][rwxXstugo]*)+`, separated by commas.
fn is_symbolic_mode(text: &str) -> bool {
    text.split(',').all(|clause| {
        let mut rest = clause.trim_start_matches(['a', 'u', 'g', 'o']);
        if rest.is_empty() {
            return false;
        }
        while let Some(tail) = rest.strip_prefix(['+', '-', '=']) {
            rest = tail.trim_start_matches(['r', 'w', 'x', 'X', 's', 't', 'u', 'g', 'o']);
        }
        rest.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [("0", 0), ("1024", 1024), ("1k", 1024), ("1.5KiB", 1536), ("2 gb", 2 << 30), ("3b", 3), ("1P", 1 << 50)] {
            assert_eq!(ram_in_bytes(text), Some(want), "{text}");
        }
        for text in ["", "k", "1x", "1kx", "1kib2", "-1", "1bb"] {
            assert_eq!(ram_in_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [("0", 0), ("1h2m3.5s", 3_723_500_000_000), ("-1ms", -1_000_000), ("1.5us", 1500), (".5s", 500_000_000)] {
            assert_eq!(duration(text).unwrap(), want, "{text}");
        }
        for (text, want) in [
            ("", "time: invalid duration \"\""),
            ("x", "time: invalid duration \"x\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5q", "time: unknown unit \"q\" in duration \"5q\""),
            ("99999999999999h", "time: invalid duration \"99999999999999h\""),
        ] {
            assert_eq!(duration(text).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn signals_and_modes() {
        for (text, want) in [("9", 9), ("SIGTERM", 15), ("sigint", 2), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("rtmax", 64)] {
            assert_eq!(parse_signal(text).unwrap(), want, "{text}");
        }
        for text in ["0", "", "SIGX", "RTMIN+16", "RTMAX-15", "RTMIN+03"] {
            assert_eq!(parse_signal(text).unwrap_err().to_string(), format!("invalid signal: {text}"));
        }
        assert_eq!(parse_chmod("0755").unwrap(), Chmod::Octal(0o755));
        for text in ["u+x", "a=r,g-w", "+X", "u=rwx,go=u-w", "="] {
            assert_eq!(parse_chmod(text).unwrap(), Chmod::Symbolic(text.to_owned()));
        }
        let wrong = |text: &str| format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
        for text in ["17777", "789", "0x1"] {
            assert_eq!(parse_chmod(text).unwrap_err().to_string(), wrong(text));
        }
        for text in ["u", "u+x,", "foo", "u+q", ","] {
            assert_eq!(parse_chmod(text).unwrap_err().to_string(), "invalid syntax", "{text}");
        }
    }
}
