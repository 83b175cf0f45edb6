//! What may be asked of the client, as plain traits: files, secrets, ssh, credentials, uploads.
//!
//! A [`Session`] is one client's tunnel; `grpc` implements it over the wire and `testkit` in memory. A [`Group`] is the sessions of the builds that
//! share a piece of work: each question goes to the first session that can answer.
mod ssh;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use oci::Digest;

pub use ssh::Forward;

/// The tunnel to one client.
#[async_trait]
pub trait Session: Send + Sync {
    fn id(&self) -> &str;

    /// What the client calls itself across builds, so that its files can be synced incrementally.
    fn shared_key(&self) -> &str;

    /// Whether the client serves `/<service>/<method>`; compared without case.
    fn supports(&self, method: &str) -> bool;

    /// Resolves when the tunnel is gone.
    async fn closed(&self);

    /// Opens a file sync of one named directory.
    async fn files(&self, request: FilesRequest) -> Result<Box<dyn FileStream>>;

    /// Opens an upload of one file (a tar, say) for the exporter with this index. `metadata` becomes `exporter-md-<key>`.
    async fn upload(&self, exporter: usize, metadata: &BTreeMap<String, String>) -> Result<Box<dyn Upload>>;

    /// Opens an upload of a directory: the daemon is the sender of packets. `multi_platform` tells the client that the tree is split by platform.
    async fn upload_tree(&self, exporter: usize, metadata: &BTreeMap<String, String>, multi_platform: bool) -> Result<Box<dyn FileStream>>;

    /// `None`: the client has no such secret, or serves none.
    async fn secret(&self, id: &str) -> Result<Option<Bytes>>;

    /// `false`: the client forwards no agent of that id.
    async fn ssh_available(&self, id: &str) -> Result<bool>;

    /// A byte pipe to the client's ssh agent.
    async fn ssh(&self, id: &str) -> Result<Box<dyn Duplex>>;

    /// User name and secret for a registry host; both empty for anonymous.
    async fn credentials(&self, host: &str) -> Result<Credentials>;

    /// Lets the client fetch a registry token. `Unimplemented` where it cannot.
    async fn fetch_token(&self, request: TokenRequest) -> Result<Token>;

    /// The client's public key for `host`, with which it proves that it may use cached tokens; `None` where it has no such thing.
    async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Bytes>>;

    /// `payload` signed by that key.
    async fn verify_token_authority(&self, host: &str, payload: &[u8], salt: &[u8]) -> Result<Bytes>;

    /// A client-side content store (`local:<dir>`, `oci:<name>`, `export`).
    fn content(&self, store_id: &str) -> Arc<dyn ContentStore>;

    /// Reads a stream that the client offers (build contexts on standard input).
    async fn pull_upload(&self, id: &str) -> Result<Box<dyn Download>>;

    /// Exporters that the client adds to the build, given the result's metadata.
    async fn find_exporters(&self, metadata: &BTreeMap<String, Bytes>, refs: &[String]) -> Result<Vec<ExporterRequest>>;

    async fn finalize_export(&self, response: &BTreeMap<String, String>) -> Result<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterRequest {
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesRequest {
    pub name: String,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub follow_paths: Vec<String>,
}

/// One packet of the file transfer protocol (fsutil).
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    /// Entries in lexical path order; each counts as the next id from 0.
    Stat(Stat),
    /// No more entries.
    StatEnd,
    Request {
        id: u32,
    },
    /// Empty data ends the file.
    Data {
        id: u32,
        data: Bytes,
    },
    Fin,
    Error(String),
}

/// An entry's metadata. `mode` has Go's `os.FileMode` bits, not POSIX ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Relative, slash separated, clean. The wire allows UTF-8 only.
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: i64,
    /// Unix nanoseconds.
    pub mod_time: i64,
    pub linkname: String,
    pub devmajor: i64,
    pub devminor: i64,
    pub xattrs: BTreeMap<String, Bytes>,
}

/// Go's `os.FileMode` bits.
pub mod go_mode {
    pub const DIR: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    pub const DEVICE: u32 = 1 << 26;
    pub const NAMED_PIPE: u32 = 1 << 25;
    pub const SOCKET: u32 = 1 << 24;
    pub const SETUID: u32 = 1 << 23;
    pub const SETGID: u32 = 1 << 22;
    pub const CHAR_DEVICE: u32 = 1 << 21;
    pub const STICKY: u32 = 1 << 20;
    pub const IRREGULAR: u32 = 1 << 19;
    pub const PERM: u32 = 0o777;

    /// From `st_mode`.
    pub fn from_posix(mode: u32) -> u32 {
        let kind = match mode & 0o170000 {
            0o040000 => DIR,
            0o120000 => SYMLINK,
            0o060000 => DEVICE,
            0o020000 => DEVICE | CHAR_DEVICE,
            0o010000 => NAMED_PIPE,
            0o140000 => SOCKET,
            _ => 0,
        };
        let bit = |posix, go| if mode & posix != 0 { go } else { 0 };
        kind | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY) | (mode & PERM)
    }

    /// To `st_mode`.
    pub fn to_posix(mode: u32) -> u32 {
        let kind = if mode & DIR != 0 {
            0o040000
        } else if mode & SYMLINK != 0 {
            0o120000
        } else if mode & CHAR_DEVICE != 0 {
            0o020000
        } else if mode & DEVICE != 0 {
            0o060000
        } else if mode & NAMED_PIPE != 0 {
            0o010000
        } else if mode & SOCKET != 0 {
            0o140000
        } else {
            0o100000
        };
        let bit = |go, posix| if mode & go != 0 { posix } else { 0 };
        kind | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000) | (mode & PERM)
    }
}

/// A stream of packets both ways.
#[async_trait]
pub trait FileStream: Send {
    async fn send(&mut self, packet: Packet) -> Result<()>;
    /// `None` at the end of the stream.
    async fn receive(&mut self) -> Result<Option<Packet>>;
    /// Splits the two directions, so that they can be driven by two tasks.
    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>);
}

#[async_trait]
pub trait PacketSink: Send {
    async fn send(&mut self, packet: Packet) -> Result<()>;
    /// As if sent one by one.
    async fn send_some(&mut self, packets: Vec<Packet>) -> Result<()> {
        for packet in packets {
            self.send(packet).await?;
        }
        Ok(())
    }
}

#[async_trait]
pub trait PacketSource: Send {
    async fn receive(&mut self) -> Result<Option<Packet>>;
    /// Waits for a packet and gives with it what else has come already; nothing at the end of the stream.
    async fn receive_some(&mut self) -> Result<Vec<Packet>> {
        Ok(self.receive().await?.into_iter().collect())
    }
}

/// A file on its way to the client.
#[async_trait]
pub trait Upload: Send {
    async fn write(&mut self, data: Bytes) -> Result<()>;
    /// Ends the file and waits until the client has it.
    async fn finish(self: Box<Self>) -> Result<()>;
}

#[async_trait]
pub trait Download: Send {
    /// `None` at the end.
    async fn read(&mut self) -> Result<Option<Bytes>>;
}

/// A two-way byte pipe.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub secret: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRequest {
    pub client_id: String,
    pub host: String,
    pub realm: String,
    pub service: String,
    pub scopes: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    pub token: String,
    /// Seconds; 0 means not given.
    pub expires_in: i64,
    pub issued_at: i64,
}

/// A blob store at the client's side.
#[async_trait]
pub trait ContentStore: Send + Sync {
    /// Size in bytes; `None` if the store lacks the blob.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>>;
    /// Streams a blob from `offset` to its end.
    async fn read(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Download>>;
    /// Opens a write of a blob of known digest and size; `None` if the store has it already.
    async fn write(&self, digest: &Digest, size: u64) -> Result<Option<Box<dyn Upload>>>;
}

/// The sessions of all builds that want one piece of work. Builds may join while the work runs.
#[derive(Clone, Default)]
pub struct Group(Arc<std::sync::RwLock<Circle>>);

#[derive(Default)]
struct Circle {
    members: Vec<Arc<dyn Session>>,
    /// Asked only by those who name them.
    guests: Vec<Arc<dyn Session>>,
}

type Sessions = Vec<Arc<dyn Session>>;

impl Group {
    pub fn new(sessions: impl IntoIterator<Item = Arc<dyn Session>>) -> Self {
        Self(Arc::new(std::sync::RwLock::new(Circle { members: sessions.into_iter().collect(), guests: Vec::new() })))
    }

    pub fn add(&self, session: Arc<dyn Session>) {
        add(&mut self.write().members, session);
    }

    /// Lets in a session that is not one of the builds' own: [`Group::find`] finds it, nobody else asks it anything.
    pub fn invite(&self, session: Arc<dyn Session>) {
        add(&mut self.write().guests, session);
    }

    /// Adds everybody that `other` has now.
    pub fn join(&self, other: &Group) {
        let (members, guests) = other.everybody();
        let mut circle = self.write();
        members.into_iter().for_each(|session| add(&mut circle.members, session));
        guests.into_iter().for_each(|session| add(&mut circle.guests, session));
    }

    /// Takes out everybody that `other` has and none of `staying` has.
    pub fn part(&self, other: &Group, staying: &[Group]) {
        let staying: Vec<_> = staying.iter().map(Group::everybody).collect();
        let (members, guests) = other.everybody();
        let mut circle = self.write();
        let has = |all: &[Arc<dyn Session>], id: &str| all.iter().any(|s| s.id() == id);
        circle.members.retain(|s| !has(&members, s.id()) || staying.iter().any(|(members, _)| has(members, s.id())));
        circle.guests.retain(|s| !has(&guests, s.id()) || staying.iter().any(|(_, guests)| has(guests, s.id())));
    }

    pub fn remove(&self, id: &str) {
        let mut circle = self.write();
        circle.members.retain(|s| s.id() != id);
        circle.guests.retain(|s| s.id() != id);
    }

    pub fn all(&self) -> Vec<Arc<dyn Session>> {
        self.read().members.clone()
    }

    /// The session with this id (a `prefix:` before the id is ignored), guests included.
    pub fn find(&self, id: &str) -> Option<Arc<dyn Session>> {
        let id = id.rsplit_once(':').map_or(id, |(_, id)| id);
        let circle = self.read();
        circle.members.iter().chain(&circle.guests).find(|s| s.id() == id).cloned()
    }

    pub fn first(&self) -> Result<Arc<dyn Session>> {
        self.all().into_iter().next().ok_or_else(|| Fault::new(Kind::NotFound, "no active sessions"))
    }

    fn everybody(&self) -> (Sessions, Sessions) {
        let circle = self.read();
        (circle.members.clone(), circle.guests.clone())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Circle> {
        self.0.read().expect("no holder of this lock panics")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Circle> {
        self.0.write().expect("no holder of this lock panics")
    }
}

fn add(all: &mut Vec<Arc<dyn Session>>, session: Arc<dyn Session>) {
    if !all.iter().any(|s| s.id() == session.id()) {
        all.push(session);
    }
}
