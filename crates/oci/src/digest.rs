use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A content digest in its textual form, `<algorithm>:<hex>`; cheap to clone.
///
/// kiln computes sha256 only. `random:` digests, which BuildKit uses for keys that must never match across sessions, parse too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {text:?}")]
pub struct DigestError {
    pub text: String,
}

impl Digest {
    /// The sha256 of `data`.
    pub fn of(data: impl AsRef<[u8]>) -> Self {
        Self::from_sha256(sha2::Sha256::digest(data).into())
    }

    /// A digest from a finished sha256 state.
    pub fn from_sha256(raw: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(raw)).into())
    }

    /// The same hex under the algorithm name `random`: a key that never matches outside its session.
    pub fn into_random(self) -> Self {
        Self(format!("random:{}", self.hex()).into())
    }

    pub fn is_random(&self) -> bool {
        self.0.starts_with("random:")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn algorithm(&self) -> &str {
        self.split().0
    }

    pub fn hex(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once(':').expect("a digest has a colon by construction")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Accepts `sha256`, `sha384`, `sha512` and `random` with lower-case hex of the right length.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError { text: text.to_owned() };
        let (algorithm, encoded) = text.split_once(':').ok_or_else(error)?;
        let length = match algorithm {
            "sha256" | "random" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err(error()),
        };
        let lower_hex = encoded.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if encoded.len() != length || !lower_hex {
            return Err(error());
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.as_ref().to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running sha256; also an [`std::io::Write`].
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, data: impl AsRef<[u8]>) {
        self.0.update(data);
    }

    pub fn finish(self) -> Digest {
        Digest::from_sha256(self.0.finalize().into())
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_rejects() {
        let empty = Digest::of(b"");
        assert_eq!(empty.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(empty.as_str().parse::<Digest>().unwrap(), empty);
        for bad in ["", "sha256:", "sha256:ABC", "md5:0123", "sha256:../../etc/passwd"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
