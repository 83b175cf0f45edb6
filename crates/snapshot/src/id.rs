use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Names a tree; also its directory's name. Thirteen characters of lower-case base 36; sorts by time of creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreeId([u8; TreeId::LEN]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid tree id {text:?}")]
pub struct TreeIdError {
    pub text: String,
}

impl TreeId {
    pub const LEN: usize = 13;
    /// Of no tree: an empty stack's root.
    pub(crate) const NONE: Self = Self([b'0'; Self::LEN]);

    /// A name not given out before by this process; the caller's exclusive `mkdir` settles the rest.
    pub(crate) fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX - 1));
        let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1))).unwrap_or_default();
        Self::encode(now.max(last + 1))
    }

    pub(crate) fn encode(mut number: u64) -> Self {
        let mut text = [b'0'; Self::LEN];
        for slot in text.iter_mut().rev() {
            *slot = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
            number /= 36;
        }
        Self(text)
    }

    /// A number that no other tree has.
    pub(crate) fn number(&self) -> u64 {
        let digit = |b: u8| u64::from(if b.is_ascii_digit() { b - b'0' } else { b - b'a' + 10 });
        // Any thirteen characters are a valid id, not all of them fit.
        self.0.iter().fold(0, |number: u64, b| number.wrapping_mul(36).wrapping_add(digit(*b)))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an id is ASCII by construction")
    }
}

impl FromStr for TreeId {
    type Err = TreeIdError;

    fn from_str(text: &str) -> Result<Self, TreeIdError> {
        let error = || TreeIdError { text: text.to_owned() };
        let raw: [u8; Self::LEN] = text.as_bytes().try_into().map_err(|_| error())?;
        if raw.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z')) { Ok(Self(raw)) } else { Err(error()) }
    }
}

impl TryFrom<String> for TreeId {
    type Error = TreeIdError;
    fn try_from(text: String) -> Result<Self, TreeIdError> {
        text.parse()
    }
}

impl From<TreeId> for String {
    fn from(id: TreeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_sort_by_creation_and_parse_back() {
        let ids: Vec<TreeId> = (0..1000).map(|_| TreeId::fresh()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(ids[0].as_str().parse::<TreeId>().unwrap(), ids[0]);
        assert_eq!(TreeId::encode(ids[0].number()), ids[0]);
        for bad in ["", "..", "0000000000000/", "000000000000A", "00000000000000"] {
            assert!(bad.parse::<TreeId>().is_err(), "{bad}");
        }
    }
}
