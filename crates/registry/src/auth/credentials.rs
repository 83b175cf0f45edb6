//! Who can answer a registry's challenge for us.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fault::{Fault, Kind};
use ring::rand::SecureRandom as _;
use session::{Session, Token, TokenRequest};

/// The clients on whose behalf a registry is asked, most preferred first. None: anonymous.
pub trait Credentials: Send + Sync {
    fn holders(&self) -> Vec<Arc<dyn Holder>>;
}

/// One client that may have a login for a registry.
#[async_trait]
pub trait Holder: Send + Sync {
    /// Tells holders apart; what was learnt about one is remembered under it.
    fn id(&self) -> &str;

    /// The key under which the holder fetches tokens for `host` itself, once it has proved that the key is its own. `None`: it has no such thing, ask
    /// for its [`Holder::login`].
    async fn proven_key(&self, host: &str) -> fault::Result<Option<[u8; 32]>>;

    async fn fetch_token(&self, request: TokenRequest) -> fault::Result<Token>;

    /// Both parts empty: anonymous.
    async fn login(&self, host: &str) -> fault::Result<session::Credentials>;
}

/// Nobody to ask.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn holders(&self) -> Vec<Arc<dyn Holder>> {
        Vec::new()
    }
}

impl Credentials for session::Group {
    fn holders(&self) -> Vec<Arc<dyn Holder>> {
        self.all().into_iter().map(|session| Arc::new(SessionHolder { session }) as Arc<dyn Holder>).collect()
    }
}

/// How long a client may think about one question.
const PATIENCE: Duration = Duration::from_secs(60);

struct SessionHolder {
    session: Arc<dyn Session>,
}

#[async_trait]
impl Holder for SessionHolder {
    fn id(&self) -> &str {
        self.session.id()
    }

    async fn proven_key(&self, host: &str) -> fault::Result<Option<[u8; 32]>> {
        let salt = daemon_salt();
        let key = match timely(self.session.token_authority(host, salt)).await {
            Ok(Some(key)) => key,
            Ok(None) => return Ok(None),
            Err(fault) if matches!(fault.kind(), Kind::Unimplemented | Kind::Unavailable) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let key: [u8; 32] = key.as_ref().try_into().map_err(|_| Fault::invalid(format!("invalid pubkey length {}", key.len())))?;
        let payload: [u8; 32] = random();
        let signed = timely(self.session.verify_token_authority(host, &payload, salt)).await?;
        if !opens(&signed, &payload, &key) {
            return Err(Fault::new(Kind::Unauthenticated, format!("client could not prove its token authority for {host}")));
        }
        Ok(Some(key))
    }

    async fn fetch_token(&self, request: TokenRequest) -> fault::Result<Token> {
        timely(self.session.fetch_token(request)).await
    }

    async fn login(&self, host: &str) -> fault::Result<session::Credentials> {
        match timely(self.session.credentials(host)).await {
            Err(fault) if fault.kind() == Kind::Unimplemented => Ok(session::Credentials::default()),
            other => other,
        }
    }
}

async fn timely<T>(answer: impl Future<Output = fault::Result<T>>) -> fault::Result<T> {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| Err(Fault::new(Kind::Deadline, "the client did not answer about its registry login in time")))
}

/// Whether `signed` is `payload` in NaCl's signed form (64 bytes of Ed25519 signature, then the message) under `key`.
fn opens(signed: &[u8], payload: &[u8], key: &[u8; 32]) -> bool {
    let Some((signature, message)) = signed.split_at_checked(64) else { return false };
    message == payload && ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key).verify(message, signature).is_ok()
}

/// Of this run of the daemon only, so that a client's keys do not identify it for longer.
fn daemon_salt() -> &'static [u8; 32] {
    static SALT: std::sync::OnceLock<[u8; 32]> = std::sync::OnceLock::new();
    SALT.get_or_init(random)
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel has randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    #[test]
    fn checks_signatures() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
        let mut signed = pair.sign(b"payload").as_ref().to_vec();
        signed.extend_from_slice(b"payload");
        assert!(opens(&signed, b"payload", &key));
        assert!(!opens(&signed, b"other", &key));
        signed[3] ^= 1;
        assert!(!opens(&signed, b"payload", &key));
        assert!(!opens(b"short", b"payload", &key));
    }
}
