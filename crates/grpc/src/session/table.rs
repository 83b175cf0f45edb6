//! The open sessions by id.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use job::Verifier;
use job::board::{Board, Place};
use session::Session;

use super::wire_session::WireSession;

/// How long a lookup waits for the session to be opened.
const WAIT: Duration = Duration::from_secs(5);

/// Clones are the same table.
#[derive(Clone, Default)]
pub struct Sessions(Board<WireSession>);

impl Sessions {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a session. One of the same id is closed: its client has come back.
    pub(crate) fn add(&self, session: Arc<WireSession>) -> Place<WireSession> {
        let id = session.identity().id.clone();
        let (place, old) = self.0.replace(&id, session);
        if let Some(old) = old {
            old.life().cancel(format!("session {id} was opened again"));
        }
        place
    }

    async fn find(&self, id: &str) -> Result<Arc<WireSession>> {
        let id = id.split_once(':').map(|(_, id)| id).filter(|id| !id.is_empty()).unwrap_or(id);
        let missing = || Fault::new(Kind::NotFound, format!("no active session for {id}: context deadline exceeded"));
        self.0.wait(id, WAIT).await.ok_or_else(missing)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[async_trait]
impl job::Sessions for Sessions {
    async fn get(&self, id: &str) -> Result<Arc<dyn Session>> {
        self.find(id).await.map(|session| session as Arc<dyn Session>)
    }

    async fn verifier(&self, id: &str) -> Result<Arc<dyn Verifier>> {
        self.find(id).await.map(|session| session as Arc<dyn Verifier>)
    }
}
