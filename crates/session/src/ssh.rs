//! A unix socket in the daemon whose connections end at the client's ssh agent.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fault::{Context as _, Result};
use task::{Cancel, CancelOnDrop};
use tokio::net::{UnixListener, UnixStream};

use crate::{Group, Session};

/// A listening socket. It and its connections end when this drops.
pub struct Forward {
    path: PathBuf,
    _stop: CancelOnDrop,
}

impl Forward {
    /// `None` if no session forwards an agent of that id. An empty id is `default`.
    pub async fn open(dir: &Path, sessions: &Group, id: &str) -> Result<Option<Self>> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = if id.is_empty() { "default" } else { id };
        let Some(session) = find(sessions, id).await? else { return Ok(None) };
        std::fs::create_dir_all(dir).context("failed to create the directory for forwarded sockets")?;
        let path = dir.join(format!("ssh-{}.sock", COUNT.fetch_add(1, Ordering::Relaxed)));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("failed to listen on {}", path.display()))?;
        let cancel = Cancel::new();
        task::spawn("ssh forward", accept(listener, session, id.to_owned(), cancel.clone()));
        Ok(Some(Self { path, _stop: CancelOnDrop::new(cancel, "the step has ended") }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn find(sessions: &Group, id: &str) -> Result<Option<Arc<dyn Session>>> {
    for session in sessions.all() {
        if session.ssh_available(id).await? {
            return Ok(Some(session));
        }
    }
    Ok(None)
}

async fn accept(listener: UnixListener, session: Arc<dyn Session>, id: String, cancel: Cancel) {
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await?;
            task::spawn("ssh connection", carry(stream, session.clone(), id.clone(), cancel.child()));
        }
    };
    if let Err(fault) = cancel.run::<(), std::io::Error>(serve).await
        && !cancel.is_cancelled()
    {
        tracing::warn!(%fault, "forwarding an ssh agent ended early");
    }
}

async fn carry(mut stream: UnixStream, session: Arc<dyn Session>, id: String, cancel: Cancel) {
    let work = async {
        let mut agent = session.ssh(&id).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut agent).await?;
        Ok::<(), fault::Fault>(())
    };
    if let Err(fault) = cancel.run(work).await {
        tracing::debug!(%fault, "a forwarded ssh connection ended");
    }
}
