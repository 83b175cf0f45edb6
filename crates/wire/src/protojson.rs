//! JSON forms of a message, straight from its wire bytes: the canonical one, and what Go's own encoder makes of generated types (names as in the schema,
//! plain numbers). The schema is the text of the `.proto` file itself.
use std::collections::BTreeMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Buf;
use prost::DecodeError;
use prost::encoding::{WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

/// The JSON form of a marshalled message of package `pb`. Fields that the schema lacks are left out.
pub fn of_pb(message: &str, bytes: &[u8]) -> Result<Value, DecodeError> {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| Schema::parse(PB, Style::Canonical)).message(message, bytes, 0)
}

/// A marshalled definition as Go's encoder writes it.
pub fn definition_as_go(bytes: &[u8]) -> Result<Value, DecodeError> {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| Schema::parse(PB, Style::Go)).message("Definition", bytes, 0)
}

const PB: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/pb.proto"));

#[derive(Clone, Copy, PartialEq, Default)]
enum Style {
    #[default]
    Canonical,
    Go,
}

/// A marshalled op in canonical JSON, for people to read.
pub fn op_json(bytes: &[u8]) -> Result<Value, DecodeError> {
    of_pb("Op", bytes)
}

#[derive(Default)]
struct Schema {
    style: Style,
    messages: BTreeMap<String, BTreeMap<u32, Field>>,
    enums: BTreeMap<String, BTreeMap<i32, String>>,
}

struct Field {
    name: String,
    kind: String,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    One,
    Many,
    /// From string to `kind`.
    Map,
}

const MAX_DEPTH: usize = 64;

impl Schema {
    /// Reads the plain subset that our files use: messages and enums at top level, `oneof`, `repeated` and `map<string, …>`.
    fn parse(text: &str, style: Style) -> Self {
        let mut schema = Self { style, ..Self::default() };
        let mut current = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split([' ', '\t', ';', '{', '}']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                ["message", name] => {
                    current = (*name).to_owned();
                    schema.messages.entry(current.clone()).or_default();
                }
                ["enum", name] => {
                    current = (*name).to_owned();
                    schema.enums.entry(current.clone()).or_default();
                }
                ["map<string,", kind, name, "=", number] => schema.field(&current, kind.trim_end_matches('>'), name, number, Shape::Map),
                ["repeated", kind, name, "=", number] => schema.field(&current, kind, name, number, Shape::Many),
                [kind, name, "=", number] if *kind != "syntax" => schema.field(&current, kind, name, number, Shape::One),
                [name, "=", number] if schema.enums.contains_key(&current) => {
                    let number = number.parse().expect("our own schema has numbers");
                    schema.enums.entry(current.clone()).or_default().insert(number, (*name).to_owned());
                }
                _ => {}
            }
        }
        schema
    }

    fn field(&mut self, message: &str, kind: &str, name: &str, number: &str, shape: Shape) {
        let name = if self.style == Style::Canonical { camel_case(name) } else { name.to_owned() };
        let field = Field { name, kind: kind.to_owned(), shape };
        let number = number.parse().expect("our own schema has numbers");
        self.messages.entry(message.to_owned()).or_default().insert(number, field);
    }

    fn message(&self, name: &str, mut bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
        let fields = &self.messages[name];
        let mut out = Map::new();
        while bytes.has_remaining() {
            let (number, wire) = decode_key(&mut bytes)?;
            let Some(field) = fields.get(&number).filter(|_| depth < MAX_DEPTH) else {
                skip_field(wire, number, &mut bytes, Default::default())?;
                continue;
            };
            if field.shape == Shape::Many && wire == WireType::LengthDelimited && self.is_varint(&field.kind) {
                let mut packed = take(&mut bytes)?;
                let list = list(&mut out, &field.name);
                while packed.has_remaining() {
                    list.push(self.varint(&field.kind, decode_varint(&mut packed)?));
                }
                continue;
            }
            match field.shape {
                Shape::One => {
                    let value = self.value(&field.kind, wire, &mut bytes, depth)?;
                    out.insert(field.name.clone(), value);
                }
                Shape::Many => {
                    let value = self.value(&field.kind, wire, &mut bytes, depth)?;
                    list(&mut out, &field.name).push(value);
                }
                Shape::Map => {
                    let (key, value) = self.entry(&field.kind, take(&mut bytes)?, depth)?;
                    if let Value::Object(map) = out.entry(&field.name).or_insert_with(|| Value::Object(Map::new())) {
                        map.insert(key, value);
                    }
                }
            }
        }
        Ok(Value::Object(out))
    }

    fn entry(&self, kind: &str, mut bytes: &[u8], depth: usize) -> Result<(String, Value), DecodeError> {
        let (mut key, mut value) = (String::new(), self.blank(kind));
        while bytes.has_remaining() {
            match decode_key(&mut bytes)? {
                (1, WireType::LengthDelimited) => key = String::from_utf8_lossy(take(&mut bytes)?).into_owned(),
                (2, wire) => value = self.value(kind, wire, &mut bytes, depth)?,
                (number, wire) => skip_field(wire, number, &mut bytes, Default::default())?,
            }
        }
        Ok((key, value))
    }

    fn value(&self, kind: &str, wire: WireType, bytes: &mut &[u8], depth: usize) -> Result<Value, DecodeError> {
        match wire {
            WireType::Varint => Ok(self.varint(kind, decode_varint(bytes)?)),
            WireType::LengthDelimited => {
                let data = take(bytes)?;
                match kind {
                    "string" => Ok(String::from_utf8_lossy(data).into()),
                    "bytes" => Ok(STANDARD.encode(data).into()),
                    message if self.messages.contains_key(message) => self.message(message, data, depth + 1),
                    _ => Ok(Value::Null),
                }
            }
            other => {
                skip_field(other, 1, bytes, Default::default())?;
                Ok(Value::Null)
            }
        }
    }

    fn is_varint(&self, kind: &str) -> bool {
        matches!(kind, "bool" | "int32" | "uint32" | "int64" | "uint64") || self.enums.contains_key(kind)
    }

    /// In the canonical form 64-bit numbers are strings, enums their names.
    fn varint(&self, kind: &str, raw: u64) -> Value {
        match kind {
            "int64" if self.style == Style::Go => (raw as i64).into(),
            "uint64" if self.style == Style::Go => raw.into(),
            kind if self.style == Style::Go && self.enums.contains_key(kind) => (raw as i32).into(),
            "bool" => (raw != 0).into(),
            "int32" => (raw as i32).into(),
            "uint32" => (raw as u32).into(),
            "int64" => (raw as i64).to_string().into(),
            "uint64" => raw.to_string().into(),
            name => match self.enums.get(name).and_then(|names| names.get(&(raw as i32))) {
                Some(name) => name.as_str().into(),
                None => (raw as i32).into(),
            },
        }
    }

    fn blank(&self, kind: &str) -> Value {
        match kind {
            "string" | "bytes" => "".into(),
            kind if self.is_varint(kind) => self.varint(kind, 0),
            _ => Value::Object(Map::new()),
        }
    }
}

fn list<'a>(out: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    match out.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        Value::Array(list) => list,
        _ => unreachable!("a repeated field is only ever stored as a list"),
    }
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = decode_varint(bytes)? as usize;
    // An error of prost's own: it offers no way to make one.
    if length > bytes.len() {
        return Err(
            skip_field(WireType::LengthDelimited, 1, &mut [0x01u8].as_slice(), Default::default()).expect_err("one byte is missing")
        );
    }
    let (data, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(data)
}

fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use proto::pb;

    #[test]
    fn an_op_in_canonical_json() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta { args: vec!["sh".into()], valid_exit_codes: vec![1, 2], cwd: "/".into(), ..Default::default() }),
            mounts: vec![pb::Mount { dest: "/".into(), output: -1, mount_type: pb::MountType::Cache as i32, ..Default::default() }],
            network: pb::NetMode::Host as i32,
            ..Default::default()
        };
        let op = pb::Op {
            inputs: vec![pb::Input { digest: "sha256:00".into(), index: 1 }],
            op: Some(pb::op::Op::Exec(exec)),
            platform: Some(pb::Platform { os: "linux".into(), ..Default::default() }),
            ..Default::default()
        };
        let expected = serde_json::json!({
            "inputs": [{"digest": "sha256:00", "index": "1"}],
            "exec": {
                "meta": {"args": ["sh"], "cwd": "/", "validExitCodes": [1, 2]},
                "mounts": [{"dest": "/", "output": "-1", "mountType": "CACHE"}],
                "network": "HOST",
            },
            "platform": {"OS": "linux"},
        });
        assert_eq!(of_pb("Op", &op.encode_to_vec()).unwrap(), expected);
    }

    #[test]
    fn maps_bytes_and_oneofs() {
        let attrs = [("git.keepgitdir".to_owned(), "true".to_owned())].into();
        let source = pb::Op { op: Some(pb::op::Op::Source(pb::SourceOp { identifier: "git://x".into(), attrs })), ..Default::default() };
        let expected = serde_json::json!({"source": {"identifier": "git://x", "attrs": {"git.keepgitdir": "true"}}});
        assert_eq!(of_pb("Op", &source.encode_to_vec()).unwrap(), expected);
        let by_id = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        assert_eq!(of_pb("UserOpt", &by_id.encode_to_vec()).unwrap(), serde_json::json!({"byID": 0}));
        let file = pb::FileActionMkFile { data: vec![255, 0], ..Default::default() };
        assert_eq!(of_pb("FileActionMkFile", &file.encode_to_vec()).unwrap(), serde_json::json!({"data": "/wA="}));
    }

    #[test]
    fn truncated_and_foreign_bytes_do_not_panic() {
        let op = pb::Op { inputs: vec![pb::Input { digest: "sha256:00".into(), index: 1 }], ..Default::default() }.encode_to_vec();
        assert!((1..op.len()).all(|cut| of_pb("Op", &op[..cut]).is_err()));
        for seed in 0..=255u8 {
            let _ = of_pb("Op", &[seed, seed.wrapping_mul(7), seed ^ 0x5a, 3, seed]);
        }
    }
}
