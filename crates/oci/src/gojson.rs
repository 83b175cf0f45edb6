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
    fn indents_and_sorts_like_go() {
        let value = sorted(serde_json::json!({"b": {"z": 1, "a": {}}, "a": [1, {"d": 0, "c": 0}]}));
        let want =
            "{\n  \"a\": [\n    1,\n    {\n      \"c\": 0,\n      \"d\": 0\n    }\n  ],\n  \"b\": {\n    \"a\": {},\n    \"z\": 1\n  }\n}";
        assert_eq!(String::from_utf8(to_vec_indent(&value)).unwrap(), want);
    }
}
