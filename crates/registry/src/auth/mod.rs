//! Answers challenges: remembers what each host asked for, who the clients are, and the tokens they may use.
//!
//! A cached token belongs to an identity: a proven key, a login, or nobody. Clients share tokens only if they are the same identity, and tokens that
//! may push are not even shared then.
mod challenge;
mod credentials;
mod scope;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use session::TokenRequest;
use tokio::sync::OnceCell;

pub(crate) use challenge::{Challenge, parse};
pub use credentials::{Anonymous, Credentials, Holder};
pub(crate) use scope::Scopes;
pub(crate) use token::escape;
use token::{Bearer, Realm};

use crate::error::{RegistryError, Result};
use crate::transport::Transport;

/// One question for authorization.
pub(crate) struct Ask<'a> {
    /// The API host, with port.
    pub host: &'a str,
    pub repository: &'a str,
    pub push: bool,
    pub scopes: Scopes,
    pub holder: Option<Arc<dyn Holder>>,
    pub transport: &'a Transport,
}

/// A header to send, and what it came from.
pub(crate) struct Grant {
    pub header: String,
    token: Option<TokenKey>,
    fresh: bool,
}

#[derive(Default)]
pub(crate) struct Auth(Mutex<State>);

#[derive(Default)]
struct State {
    /// By host and holder.
    identities: HashMap<(String, String), Identity>,
    challenges: HashMap<Place, Known>,
    tokens: HashMap<TokenKey, Arc<OnceCell<Cached>>>,
}

/// Host, repository, push.
type Place = (String, String, bool);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Identity {
    Anonymous,
    Login { username: String, secret: String },
    Key([u8; 32]),
}

#[derive(Clone)]
enum Known {
    Basic,
    /// With the scopes that the registry wants beyond those we know to need.
    Bearer(Realm, Scopes),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    host: String,
    identity: Identity,
    realm: Realm,
    scopes: Scopes,
    /// Tokens that may push are one holder's.
    owner: Option<String>,
}

struct Cached {
    header: String,
    until: Option<Instant>,
}

/// More than any daemon's working set; beyond it the memory starts again from empty.
const MAX_REMEMBERED: usize = 4096;

impl Auth {
    /// The header for a request, `None` if nothing is known to be needed yet.
    pub async fn authorization(&self, ask: &Ask<'_>) -> Result<Option<Grant>> {
        let Some(known) = self.state().challenges.get(&ask.place()).cloned() else { return Ok(None) };
        let identity = self.identity(ask).await?;
        match known {
            Known::Basic => Ok(match identity {
                Identity::Login { username, secret } => Some(Grant { header: token::basic(&username, &secret), token: None, fresh: true }),
                _ => None,
            }),
            Known::Bearer(realm, extra) => {
                let mut scopes = ask.scopes.clone();
                scopes.merge(&extra);
                let owner = ask.holder.as_ref().filter(|_| ask.push).map(|h| h.id().to_owned());
                self.bearer(ask, TokenKey { host: ask.host.to_owned(), identity, realm, scopes, owner }).await.map(Some)
            }
        }
    }

    /// Takes note of a 401. Whether it is worth asking again.
    pub fn challenged(&self, ask: &Ask<'_>, challenges: &[Challenge], used: Option<&Grant>) -> Result<bool> {
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            return self.bearer_challenged(ask, bearer, used);
        }
        if challenges.iter().any(|c| c.scheme == "basic") {
            let again = used.is_none();
            if again {
                let mut state = self.state();
                trim(&mut state.challenges);
                state.challenges.insert(ask.place(), Known::Basic);
            } else {
                self.forget(ask);
            }
            return Ok(again);
        }
        if challenges.is_empty() { Ok(false) } else { Err(RegistryError::AuthScheme) }
    }

    fn bearer_challenged(&self, ask: &Ask<'_>, challenge: &Challenge, used: Option<&Grant>) -> Result<bool> {
        let realm = Realm { url: challenge.get("realm").to_owned(), service: challenge.get("service").to_owned() };
        if realm.url.is_empty() {
            let problem = "a token challenge without a realm".to_owned();
            return Err(RegistryError::Answer { url: ask.host.to_owned(), problem });
        }
        let mut wanted = Scopes::default();
        wanted.add(challenge.get("scope"));
        let mut state = self.state();
        let mut again = true;
        if let Some(key) = used.and_then(|u| u.token.as_ref()) {
            // Another request may have replaced it already.
            let refused = |cell: &Arc<OnceCell<Cached>>| cell.get().is_some_and(|c| used.is_some_and(|u| u.header == c.header));
            if state.tokens.get(key).is_some_and(refused) {
                state.tokens.remove(key);
            }
            let enough = key.scopes.contains(&wanted) && key.realm == realm;
            let fresh = used.is_some_and(|u| u.fresh);
            if enough && (fresh || challenge.get("error") == "insufficient_scope") {
                again = false;
            }
        }
        if let Some(Known::Bearer(_, extra)) = state.challenges.get(&ask.place()) {
            wanted.merge(extra);
        }
        trim(&mut state.challenges);
        state.challenges.insert(ask.place(), Known::Bearer(realm, wanted));
        drop(state);
        if !again {
            self.forget(ask);
            if let message @ ("insufficient_scope" | "invalid_token") = challenge.get("error") {
                return Err(RegistryError::Unauthorized { message: format!("{message}: authorization failed") });
            }
        }
        Ok(again)
    }

    /// A login that was refused may be replaced by a better one: ask the holder again next time.
    fn forget(&self, ask: &Ask<'_>) {
        if let Some(holder) = &ask.holder {
            self.state().identities.remove(&(ask.host.to_owned(), holder.id().to_owned()));
        }
    }

    async fn identity(&self, ask: &Ask<'_>) -> Result<Identity> {
        let Some(holder) = &ask.holder else { return Ok(Identity::Anonymous) };
        let key = (ask.host.to_owned(), holder.id().to_owned());
        if let Some(known) = self.state().identities.get(&key) {
            return Ok(known.clone());
        }
        let identity = match holder.proven_key(ask.host).await.map_err(RegistryError::Client)? {
            Some(key) => Identity::Key(key),
            None => match holder.login(ask.host).await.map_err(RegistryError::Client)? {
                login if login.secret.is_empty() => Identity::Anonymous,
                session::Credentials { username, secret } => Identity::Login { username, secret },
            },
        };
        let mut state = self.state();
        trim(&mut state.identities);
        state.identities.insert(key, identity.clone());
        Ok(identity)
    }

    /// The cached token, or a new one. Requests that want the same token at the same time fetch it once.
    async fn bearer(&self, ask: &Ask<'_>, key: TokenKey) -> Result<Grant> {
        let cell = {
            let mut state = self.state();
            let now = Instant::now();
            state.tokens.retain(|_, cell| cell.get().is_none_or(|cached| cached.until.is_none_or(|until| until > now)));
            trim(&mut state.tokens);
            state.tokens.entry(key.clone()).or_default().clone()
        };
        let mut fresh = false;
        let cached = cell
            .get_or_try_init(|| async {
                fresh = true;
                let Bearer { token, life } = self.fetch(ask, &key).await?;
                Ok::<_, RegistryError>(Cached { header: format!("Bearer {token}"), until: life.map(|life| Instant::now() + life) })
            })
            .await?;
        Ok(Grant { header: cached.header.clone(), token: Some(key), fresh })
    }

    async fn fetch(&self, ask: &Ask<'_>, key: &TokenKey) -> Result<Bearer> {
        let scopes = key.scopes.list();
        let failed = |anonymous| move |source| RegistryError::Token { anonymous, source: Box::new(source) };
        match (&key.identity, &ask.holder) {
            (Identity::Key(_), Some(holder)) => {
                let request = TokenRequest {
                    client_id: token::CLIENT_ID.into(),
                    host: ask.host.to_owned(),
                    realm: key.realm.url.clone(),
                    service: key.realm.service.clone(),
                    scopes,
                };
                let token = holder.fetch_token(request).await.map_err(RegistryError::Client)?;
                let issued = (token.issued_at != 0).then_some(token.issued_at);
                Ok(Bearer { token: token.token, life: token::life(token.expires_in, issued).or(Some(Duration::from_secs(1))) })
            }
            (Identity::Login { username, secret }, _) => {
                token::with_login(ask.transport, &key.realm, &scopes, username, secret).await.map_err(failed(false))
            }
            _ => token::anonymous(ask.transport, &key.realm, &scopes).await.map_err(failed(true)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Ask<'_> {
    fn place(&self) -> Place {
        (self.host.to_owned(), self.repository.to_owned(), self.push)
    }
}

fn trim<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
}
