use std::fmt;
use std::str::FromStr;

use rand::Rng as _;
use serde::{Deserialize, Serialize};

/// Names a layer, as clients see it: 25 characters of lower-case base 36, random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId([u8; LayerId::LEN]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid layer id {text:?}")]
pub struct LayerIdError {
    pub text: String,
}

impl LayerId {
    pub const LEN: usize = 25;
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    pub(crate) fn random() -> Self {
        let mut rng = rand::rng();
        Self(std::array::from_fn(|_| Self::ALPHABET[rng.random_range(0..36)]))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an id is ASCII by construction")
    }
}

impl FromStr for LayerId {
    type Err = LayerIdError;

    fn from_str(text: &str) -> Result<Self, LayerIdError> {
        let error = || LayerIdError { text: text.to_owned() };
        let raw: [u8; Self::LEN] = text.as_bytes().try_into().map_err(|_| error())?;
        if raw.iter().all(|b| Self::ALPHABET.contains(b)) { Ok(Self(raw)) } else { Err(error()) }
    }
}

impl TryFrom<String> for LayerId {
    type Error = LayerIdError;
    fn try_from(text: String) -> Result<Self, LayerIdError> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
