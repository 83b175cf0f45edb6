//! Text as Go prints it, because error texts, step names and image histories hold it.
use std::fmt::Write as _;

/// In double quotes with escapes, as Go's `%q`.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if printable(c) => out.push(c),
            c if (c as u32) < 0x80 => _ = write!(out, "\\x{:02x}", c as u32),
            c if (c as u32) < 0x10000 => _ = write!(out, "\\u{:04x}", c as u32),
            c => _ = write!(out, "\\U{:08x}", c as u32),
        }
    }
    out.push('"');
    out
}

/// Close to Go's `strconv.IsPrint`: controls, formats, private use and blanks other than the space are not.
fn printable(c: char) -> bool {
    let odd = matches!(c as u32,
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
        | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe | 0xffff | 0xe0000..=0xe0fff | 0xf0000..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || odd)
}

/// `["a" "b"]`, as Go's `%q` of a list.
pub(crate) fn quote_list<S: AsRef<str>>(items: &[S]) -> String {
    format!("[{}]", items.iter().map(|i| quote(i.as_ref())).collect::<Vec<_>>().join(" "))
}

/// `[a b]`, as Go's `%v` of a list.
pub(crate) fn list<S: AsRef<str>>(items: &[S]) -> String {
    format!("[{}]", items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "))
}

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The option nearest to `value`, if it is near enough to be what was meant and `value` itself is none.
pub(crate) fn nearest<S: AsRef<str>>(value: &str, options: impl IntoIterator<Item = S>, case_sensitive: bool) -> Option<String> {
    let fold = |s: &str| if case_sensitive { s.to_owned() } else { s.to_lowercase() };
    let wanted = fold(value);
    let mut best = (3, None);
    for option in options {
        let option = fold(option.as_ref());
        if option == wanted {
            return None;
        }
        let distance = distance(&wanted, &option);
        if distance < best.0 {
            best = (distance, Some(option));
        }
    }
    let found = best.1?;
    Some(match case_sensitive {
        false if value == value.to_lowercase() => found.to_lowercase(),
        false if value == value.to_uppercase() => found.to_uppercase(),
        _ => found,
    })
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_like_go() {
        assert_eq!(quote("a\"b\\c\n\t\u{1}é☺\u{a0}\u{200b}"), r#""a\"b\\c\n\t\x01é☺\u00a0\u200b""#);
        assert_eq!(quote_list(&["a", "b c"]), r#"["a" "b c"]"#);
        assert_eq!(quote_list::<&str>(&[]), "[]");
    }

    #[test]
    fn guesses() {
        let all = ["FROM", "RUN", "COPY"];
        assert_eq!(nearest("FORM", all, false).as_deref(), Some("FROM"));
        assert_eq!(nearest("copi", all, false).as_deref(), Some("copy"));
        assert_eq!(nearest("Runn", all, false).as_deref(), Some("run"));
        assert_eq!(nearest("RUN", all, false), None);
        assert_eq!(nearest("ENTRYPOINT", all, false), None);
        assert_eq!(nearest("alpne", ["alpine"], true).as_deref(), Some("alpine"));
    }
}
