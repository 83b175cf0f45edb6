//! The token that a GitHub Actions job has for its cache: a JWT that says which scopes may be read and written.
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fault::{Fault, Result};
use serde::Deserialize;

/// Not verified: whoever serves the cache does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub raw: String,
    pub scopes: Vec<Scope>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Scope {
    pub scope: String,
    pub permission: u32,
}

const WRITE: u32 = 2;

#[derive(Deserialize)]
struct Claims {
    ac: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl Token {
    /// `now` is in Unix seconds.
    pub fn parse(raw: &str, now: i64) -> Result<Self> {
        let wrong = |why: String| Fault::invalid(format!("invalid token: {why}"));
        let mut parts = raw.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("token contains an invalid number of segments".into()));
        };
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|e| wrong(e.to_string()))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|e| wrong(e.to_string()))?;
        let scopes = claims.ac.ok_or_else(|| Fault::invalid("invalid token without access controls"))?;
        let end = claims.exp.ok_or_else(|| Fault::invalid("invalid token without expiration time"))? as i64;
        if now > end {
            return Err(Fault::invalid(format!("cache token expired at {}", oci::Timestamp::from_unix(end, 0))));
        }
        let start = claims.nbf.ok_or_else(|| Fault::invalid("invalid token without expiration time"))? as i64;
        if now < start {
            return Err(Fault::invalid(format!("invalid token with future issue time {}", oci::Timestamp::from_unix(start, 0))));
        }
        let scopes = serde_json::from_str(&scopes).map_err(|e| Fault::invalid(format!("failed to parse token access controls: {e}")))?;
        Ok(Self { raw: raw.to_owned(), scopes })
    }

    /// The scope that is written to; the last of several.
    pub fn writable(&self) -> &str {
        self.scopes.iter().rfind(|s| s.permission & WRITE != 0).map_or("", |s| s.scope.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("{}.{}.sig", URL_SAFE_NO_PAD.encode("{}"), URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn scopes_are_read_and_times_are_checked() {
        let good = token(
            r#"{"ac":"[{\"Scope\":\"refs/heads/x\",\"Permission\":3},{\"Scope\":\"refs/heads/main\",\"Permission\":1}]","exp":200,"nbf":100}"#,
        );
        let parsed = Token::parse(&good, 150).unwrap();
        assert_eq!(parsed.writable(), "refs/heads/x");
        assert_eq!(parsed.scopes[1], Scope { scope: "refs/heads/main".into(), permission: 1 });
        assert!(Token::parse(&good, 201).unwrap_err().to_string().starts_with("cache token expired at 1970"));
        assert!(Token::parse(&good, 99).is_err());
        for bad in ["", "a.b", "a.!.c", &token("{}"), &token(r#"{"ac":"x","exp":200,"nbf":100}"#)] {
            assert!(Token::parse(bad, 150).is_err(), "{bad}");
        }
    }
}
