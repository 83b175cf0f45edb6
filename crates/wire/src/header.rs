//! Metadata values that are not ASCII travel URL-query-escaped, with a second key that says so.

/// The values for `key` as they may be sent, and whether `<key>-encoded: 1` must go with them. One value beyond ASCII escapes them all.
pub fn escape(values: &[String]) -> (Vec<String>, bool) {
    if values.iter().all(|value| value.is_ascii()) {
        return (values.to_vec(), false);
    }
    (values.iter().map(|value| query_escape(value)).collect(), true)
}

/// The key that marks the values of `key` as escaped.
pub fn is_escaped_key(key: &str) -> String {
    format!("{key}-encoded")
}

/// Takes escapes back. `None` where an escape is malformed or the result is not UTF-8.
pub fn unescape(value: &str) -> Option<String> {
    let mut raw = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        raw.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| (byte? as char).to_digit(16);
                (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(raw).ok()
}

fn query_escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_beyond_ascii_are_escaped_and_then_all() {
        let plain = vec!["a b%".to_owned(), "c/d".to_owned()];
        assert_eq!(escape(&plain), (plain.clone(), false));
        let (escaped, marked) = escape(&["a b+c".to_owned(), "ü/~".to_owned()]);
        assert!(marked);
        assert_eq!(escaped, ["a+b%2Bc", "%C3%BC%2F~"]);
        assert_eq!(unescape(&escaped[0]).unwrap(), "a b+c");
        assert_eq!(unescape(&escaped[1]).unwrap(), "ü/~");
    }

    #[test]
    fn malformed_escapes_are_refused() {
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
