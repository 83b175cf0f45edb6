//! A unix socket in the daemon whose connections end at the client's ssh agent.
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fault::{Context as _, Result};
use task::{Cancel, CancelOnDrop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::{Duplex, Group, Session};

/// How long others wait for the client to close a connection that has ended here.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listening socket. It and its connections end when this drops; [`finish`](Self::finish) lets connections end in good order before.
pub struct Forward {
    path: PathBuf,
    connections: Connections,
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
        let connections = Connections::default();
        task::spawn("ssh forward", accept(listener, session, id.to_owned(), connections.clone(), cancel.clone()));
        Ok(Some(Self { path, connections, _stop: CancelOnDrop::new(cancel, "the step has ended") }))
    }

    /// To be called when no process is left that could use it: resolves when the client has closed what they had open.
    pub async fn finish(&self) {
        settled(self.connections.all().into_iter().map(|(_, over)| over).collect()).await;
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

async fn accept(listener: UnixListener, session: Arc<dyn Session>, id: String, connections: Connections, cancel: Cancel) {
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await?;
            let earlier = connections.hung_up().await;
            let (stream, over) = connections.add(stream);
            let (session, id) = (session.clone(), id.clone());
            let work = async move {
                // The agent sees the end of one before the beginning of the next, as it would of a client of its own.
                settled(earlier).await;
                carry(&stream, session.ssh(&id).await?).await
            };
            let cancel = cancel.child();
            task::spawn("ssh connection", async move {
                if let Err(fault) = cancel.run(work).await {
                    tracing::debug!(%fault, "a forwarded ssh connection ended");
                }
                drop(over);
            });
        }
    };
    if let Err(fault) = cancel.run::<(), std::io::Error>(serve).await
        && !cancel.is_cancelled()
    {
        tracing::warn!(%fault, "forwarding an ssh agent ended early");
    }
}

/// Those of one socket. Each is with a receiver whose sender goes when the client has closed it.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<Vec<Listed>>>);

type Over = watch::Receiver<()>;
type Listed = (Weak<UnixStream>, Over);

impl Connections {
    fn add(&self, stream: UnixStream) -> (Arc<UnixStream>, watch::Sender<()>) {
        let (stream, (sender, over)) = (Arc::new(stream), watch::channel(()));
        self.list().push((Arc::downgrade(&stream), over));
        (stream, sender)
    }

    /// Those that the step has closed and the client has not.
    async fn hung_up(&self) -> Vec<Over> {
        let all = self.all();
        let mut found = Vec::new();
        for (stream, over) in all {
            // The kernel told of that before it told of a later connection.
            let Some(stream) = stream.upgrade() else {
                found.push(over);
                continue;
            };
            if let Ok(Ok(state)) = tokio::time::timeout(Duration::ZERO, stream.ready(Interest::READABLE)).await
                && state.is_read_closed()
            {
                found.push(over);
            }
        }
        found
    }

    fn all(&self) -> Vec<Listed> {
        let mut list = self.list();
        list.retain(|(_, over)| over.has_changed().is_ok());
        list.clone()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Listed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the client, but not for ever.
async fn settled(connections: Vec<Over>) {
    let all = async {
        for mut over in connections {
            while over.changed().await.is_ok() {}
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!("the client does not close a forwarded ssh connection");
    }
}

/// Until the client closes it. What the step closes is closed there first.
async fn carry(stream: &UnixStream, agent: Box<dyn Duplex>) -> Result<()> {
    let (mut from, mut to) = tokio::io::split(agent);
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut buffer) {
                Ok(0) => break to.shutdown().await,
                Ok(count) => to.write_all(&buffer[..count]).await?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => break Err(error),
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from.read(&mut buffer).await?;
            let mut rest = &buffer[..count];
            if rest.is_empty() {
                break Ok::<(), std::io::Error>(());
            }
            while !rest.is_empty() {
                stream.writable().await?;
                match stream.try_write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // Nobody listens any more; the end is the client's to say.
                    Err(_) => break,
                }
            }
        }
    };
    tokio::pin!(down);
    tokio::select! {
        ended = &mut down => Ok(ended?),
        sent = up => {
            sent?;
            Ok(down.await?)
        }
    }
}
