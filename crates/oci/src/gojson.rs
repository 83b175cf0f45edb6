//! JSON as Go's `encoding/json` writes it. Configs, manifests and cache keys are digested, so their bytes matter.
//!
//! Differences from plain JSON: `<`, `>`, `&` and the two Unicode line separators are escaped inside strings. Field order and omission of empty
//! fields are the type's business; a Go *map* has its keys sorted, for which [`sorted`] is.
use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Compact form, as `json.Marshal`.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, CompactFormatter)
}

/// Compact form, as `json.Marshal`.
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    String::from_utf8(to_vec(value)).expect("JSON is UTF-8")
}

/// Indented by two spaces, as `json.MarshalIndent(v, "", "  ")`.
pub fn to_vec_indent<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, PrettyFormatter::with_indent(b"  "))
}

/// Indented by tabs, as `json.MarshalIndent(v, "", "\t")`.
pub fn to_vec_tabs<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, PrettyFormatter::with_indent(b"\t"))
}

/// The value with the keys of every object in byte order, as Go writes maps.
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// JSON text without the space between its words and with Go's escapes: numbers, key order and other escapes stay as they are.
pub fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            ' ' | '\t' | '\n' | '\r' if !quoted => continue,
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            _ => out.push(c),
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    out
}

/// Compact JSON text indented by two spaces, nothing else changed.
pub fn indent(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    let mut previous = ' ';
    for c in compact.chars() {
        let opened = !quoted && matches!(previous, '{' | '[');
        if !quoted && matches!(c, '}' | ']') {
            depth = depth.saturating_sub(1);
            if !opened {
                line(&mut out, depth);
            }
        } else if opened || (!quoted && previous == ',') {
            line(&mut out, depth);
        }
        out.push(c);
        match c {
            '{' | '[' if !quoted => depth += 1,
            ':' if !quoted => out.push(' '),
            _ => {}
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        // What a string ends with says nothing about structure.
        previous = if quoted || c == '"' { '"' } else { c };
    }
    out
}

fn line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

fn write<T: Serialize + ?Sized>(value: &T, inner: impl Formatter) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let mut serializer = Serializer::with_formatter(&mut out, Escaping(inner));
    value.serialize(&mut serializer).expect("our types have string keys and writing to memory does not fail");
    out
}

/// Passes everything to another formatter but escapes string fragments the way Go does.
struct Escaping<F>(F);

macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        fn $name<W: ?Sized + io::Write>(&mut self, writer: &mut W $(, $arg: $ty)*) -> io::Result<()> {
            self.0.$name(writer $(, $arg)*)
        }
    )*};
}

impl<F: Formatter> Formatter for Escaping<F> {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let special = rest[at..].chars().next().expect("found above");
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", special as u32)?;
            rest = &rest[at + special.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    forward! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_like_go() {
        let value = serde_json::json!({"a": "x < y && z > \u{2028}é\n\u{1}", "b<": []});
        assert_eq!(to_string(&value), r#"{"a":"x \u003c y \u0026\u0026 z \u003e \u2028é\n\u0001","b\u003c":[]}"#);
    }

    #[test]
    fn text_is_rewritten_without_being_read() {
        let text = "{ \"a\" : [ 1.0, \"x { , : \\\" <\" ,{} ,[ ] ],\n\"b\":{\"c\":1e3}}";
        let compacted = compact(text);
        assert_eq!(compacted, r#"{"a":[1.0,"x { , : \" \u003c",{},[]],"b":{"c":1e3}}"#);
        let value: Value = serde_json::from_str(&compacted).unwrap();
        assert_eq!(indent(&to_string(&value)).into_bytes(), to_vec_indent(&value));
        assert_eq!(indent(r#"{"b":1e3}"#), "{\n  \"b\": 1e3\n}");
    }

    #[test]
    fn indents_and_sorts_like_go() {
        let value = sorted(serde_json::json!({"b": {"z": 1, "a": {}}, "a": [1, {"d": 0, "c": 0}]}));
        let want =
            "{\n  \"a\": [\n    1,\n    {\n      \"c\": 0,\n      \"d\": 0\n    }\n  ],\n  \"b\": {\n    \"a\": {},\n    \"z\": 1\n  }\n}";
        assert_eq!(String::from_utf8(to_vec_indent(&value)).unwrap(), want);
    }
}
