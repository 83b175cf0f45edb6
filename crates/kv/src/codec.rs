use std::borrow::Cow;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names a table and the types of what it holds. A constant in the room that owns the table.
pub struct Table<K: ?Sized, V> {
    pub(crate) name: &'static str,
    types: PhantomData<fn(&K) -> V>,
}

impl<K: ?Sized, V> Table<K, V> {
    pub const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// A key; scans go in the byte order of the encoded form.
pub trait Key {
    type Owned;
    fn encode(&self) -> Cow<'_, [u8]>;
    /// `None` if the bytes are not such a key.
    fn decode(bytes: &[u8]) -> Option<Self::Owned>;
}

impl Key for str {
    type Owned = String;
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }
    fn decode(bytes: &[u8]) -> Option<String> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl Key for [u8] {
    type Owned = Vec<u8>;
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
    fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
        Some(bytes.to_vec())
    }
}

/// Big-endian, so that scans go in numeric order.
impl Key for u64 {
    type Owned = u64;
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.to_be_bytes().to_vec())
    }
    fn decode(bytes: &[u8]) -> Option<u64> {
        bytes.try_into().ok().map(u64::from_be_bytes)
    }
}

pub trait Value: Sized {
    fn encode(&self) -> Vec<u8>;
    /// The error says what is wrong with the bytes.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

impl Value for Vec<u8> {
    fn encode(&self) -> Vec<u8> {
        self.clone()
    }
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        Ok(bytes.to_vec())
    }
}

impl Value for String {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())
    }
}

impl Value for u64 {
    fn encode(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| format!("{} bytes are not a number", bytes.len()))
    }
}

/// For tables that are sets.
impl Value for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
    fn decode(_: &[u8]) -> Result<Self, String> {
        Ok(())
    }
}

/// A value stored as JSON: readable in a dump, and fields may come and go between versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Serialize + DeserializeOwned> Value for Json<T> {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("a record type serializes to JSON: string keys only, no failing impl")
    }
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map(Json).map_err(|e| e.to_string())
    }
}

/// What follows each value: a checksum over the key and it, so that bytes that are not what was written are never taken for a record.
const SUM: usize = 4;

pub(crate) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = sum(key, &value);
    value.extend_from_slice(&sum);
    value
}

/// The value without its checksum; the error says what is wrong.
pub(crate) fn unseal<'v>(key: &[u8], sealed: &'v [u8]) -> Result<&'v [u8], String> {
    let (value, found) = sealed.split_last_chunk::<SUM>().ok_or_else(|| format!("{} bytes are too few for a record", sealed.len()))?;
    if *found == sum(key, value) { Ok(value) } else { Err("its checksum is wrong".into()) }
}

/// FNV-1a: any change of a single byte shows, and of two strings that differ in more one in four billion does not.
fn sum(key: &[u8], value: &[u8]) -> [u8; SUM] {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = key.iter().chain(value).fold(0xcbf2_9ce4_8422_2325, mix);
    ((hash >> 32) as u32 ^ hash as u32).to_le_bytes()
}
