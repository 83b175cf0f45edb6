//! JSON as Go's `encoding/json` writes structs whose fields are all `omitempty`: given order, zero values left out, `<`, `>` and `&` escaped.
//! Cache digests are taken of it, so it has to be right to the byte.
use base64::Engine as _;

pub(super) struct Object(String);

impl Object {
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }

    /// A value that is already JSON, written even if it is empty.
    pub fn raw(mut self, name: &str, json: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        string(name, &mut self.0);
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    /// A string that is written even if it is empty.
    pub fn always(self, name: &str, value: &str) -> Self {
        let mut json = String::new();
        string(value, &mut json);
        self.raw(name, &json)
    }

    pub fn string(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.always(name, value) }
    }

    pub fn int(self, name: &str, value: impl Into<i64>) -> Self {
        match value.into() {
            0 => self,
            value => self.raw(name, &value.to_string()),
        }
    }

    pub fn bool(self, name: &str, value: bool) -> Self {
        if value { self.raw(name, "true") } else { self }
    }

    pub fn bytes(self, name: &str, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.raw(name, &base64(value)) }
    }

    pub fn optional(self, name: &str, json: Option<String>) -> Self {
        match json {
            Some(json) => self.raw(name, &json),
            None => self,
        }
    }

    pub fn strings(self, name: &str, values: &[String]) -> Self {
        self.list(name, values, |value| {
            let mut json = String::new();
            string(value, &mut json);
            json
        })
    }

    pub fn list<T>(self, name: &str, values: &[T], json: impl Fn(&T) -> String) -> Self {
        if values.is_empty() { self } else { self.raw(name, &array(values, json)) }
    }
}

pub(super) fn array<T>(values: &[T], json: impl Fn(&T) -> String) -> String {
    let items: Vec<String> = values.iter().map(json).collect();
    format!("[{}]", items.join(","))
}

/// Bytes as a JSON string.
pub(super) fn base64(value: &[u8]) -> String {
    format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(value))
}

fn string(value: &str, out: &mut String) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}
