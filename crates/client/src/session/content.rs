//! The content service over image layout directories: cache directories, layouts as contexts, layouts as outputs.
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use futures_core::Stream;
use oci::Digest;
use prost_types::Timestamp;
use proto::containerd::services::content::v1 as pb;
use proto::containerd::services::content::v1::content_server::Content;
use sha2::Digest as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// A directory with `blobs/<algorithm>/<hex>`.
#[derive(Debug, Clone)]
pub struct BlobDir(PathBuf);

impl BlobDir {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// Writes in progress; beside the blobs, so that a rename completes them.
    fn ingest(&self, reference: &str) -> PathBuf {
        self.0.join("ingest").join(Digest::of(reference).hex())
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).exists()
    }
}

pub struct Stores {
    stores: BTreeMap<String, BlobDir>,
    /// References of writes under way: a blob has one writer at a time.
    writing: Arc<Mutex<HashSet<PathBuf>>>,
}

const CHUNK: usize = 1 << 20;
const QUEUE: usize = 8;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Stores {
    pub fn new(stores: BTreeMap<String, BlobDir>) -> Self {
        Self { stores, writing: Arc::default() }
    }

    fn find(&self, headers: &MetadataMap) -> Result<BlobDir, Status> {
        let id = headers.get("buildkit-attachable-store-id").and_then(|value| value.to_str().ok());
        let id = id.ok_or_else(|| Status::invalid_argument("no content store was named"))?;
        self.stores.get(id).cloned().ok_or_else(|| Status::not_found(format!("unknown content store {id}")))
    }
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|_| Status::invalid_argument(format!("invalid digest {digest:?}")))
}

fn failed(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found("content: not found"),
        _ => Status::unknown(error.to_string()),
    }
}

fn info(dir: &BlobDir, digest: &Digest) -> Result<pb::Info, Status> {
    let metadata = std::fs::metadata(dir.blob(digest)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
        _ => failed(e),
    })?;
    let at = metadata.modified().unwrap_or(UNIX_EPOCH);
    Ok(pb::Info {
        digest: digest.to_string(),
        size: metadata.len() as i64,
        created_at: Some(Timestamp::from(at)),
        updated_at: Some(Timestamp::from(at)),
        labels: BTreeMap::new(),
    })
}

#[tonic::async_trait]
impl Content for Stores {
    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        let dir = self.find(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        Ok(Response::new(pb::InfoResponse { info: Some(info(&dir, &digest)?) }))
    }

    /// Labels cannot be kept in a layout; the daemon's wish to set some is granted by doing nothing.
    async fn update(&self, request: Request<pb::UpdateRequest>) -> Result<Response<pb::UpdateResponse>, Status> {
        let dir = self.find(request.metadata())?;
        let digest = parse(&request.into_inner().info.unwrap_or_default().digest)?;
        Ok(Response::new(pb::UpdateResponse { info: Some(info(&dir, &digest)?) }))
    }

    type ListStream = Answers<pb::ListContentResponse>;

    async fn list(&self, request: Request<pb::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let dir = self.find(request.metadata())?;
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha384", "sha512"] {
            let Ok(entries) = std::fs::read_dir(dir.path().join("blobs").join(algorithm)) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if let Ok(digest) = format!("{algorithm}:{}", name.to_string_lossy()).parse() {
                    found.push(info(&dir, &digest)?);
                }
            }
        }
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(pb::ListContentResponse { info: found })))))
    }

    async fn delete(&self, request: Request<pb::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let dir = self.find(request.metadata())?;
        let digest = parse(&request.into_inner().digest)?;
        std::fs::remove_file(dir.blob(&digest)).map_err(failed)?;
        Ok(Response::new(()))
    }

    type ReadStream = Answers<pb::ReadContentResponse>;

    async fn read(&self, request: Request<pb::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let dir = self.find(request.metadata())?;
        let request = request.into_inner();
        let digest = parse(&request.digest)?;
        let mut file = File::open(dir.blob(&digest)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
            _ => failed(e),
        })?;
        let size = file.metadata().map_err(failed)?.len();
        let offset = u64::try_from(request.offset).ok().filter(|offset| *offset <= size);
        let offset =
            offset.ok_or_else(|| Status::out_of_range(format!("offset {} is outside of content of {size} bytes", request.offset)))?;
        let length = if request.size > 0 { (request.size as u64).min(size - offset) } else { size - offset };
        file.seek(io::SeekFrom::Start(offset)).map_err(failed)?;
        let (sender, stream) = mpsc::channel(QUEUE);
        task::spawn(
            "read blob",
            task::blocking(move || {
                let (mut file, mut at) = (file.take(length), offset);
                loop {
                    let mut chunk = vec![0; CHUNK.min((offset + length - at) as usize)];
                    let read = match file.read(&mut chunk) {
                        Ok(0) => return Ok(()),
                        Ok(read) => read,
                        Err(e) => {
                            drop(sender.blocking_send(Err(failed(e))));
                            return Ok(());
                        }
                    };
                    chunk.truncate(read);
                    if sender.blocking_send(Ok(pb::ReadContentResponse { offset: at as i64, data: chunk.into() })).is_err() {
                        return Ok(());
                    }
                    at += read as u64;
                }
            }),
        );
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.find(request.metadata())?;
        Err(Status::not_found(format!("ref {}: not found", request.into_inner().r#ref)))
    }

    async fn list_statuses(&self, request: Request<pb::ListStatusesRequest>) -> Result<Response<pb::ListStatusesResponse>, Status> {
        self.find(request.metadata())?;
        Ok(Response::new(pb::ListStatusesResponse::default()))
    }

    type WriteStream = Answers<pb::WriteContentResponse>;

    async fn write(&self, request: Request<Streaming<pb::WriteContentRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        let dir = self.find(request.metadata())?;
        let mut incoming = request.into_inner();
        let (sender, stream) = mpsc::channel(QUEUE);
        let (requests, queue) = mpsc::channel(QUEUE);
        let writing = self.writing.clone();
        task::spawn(
            "write blob",
            task::blocking(move || {
                let mut queue = queue;
                let mut ingest = None;
                while let Some(request) = queue.blocking_recv() {
                    let answer = take(&dir, &writing, &mut ingest, request);
                    let failed = answer.is_err();
                    if failed {
                        // Whoever hears of it finds nothing left, and may begin again under the same ref.
                        ingest = None;
                    }
                    if sender.blocking_send(answer).is_err() || failed {
                        break;
                    }
                }
                Ok(())
            }),
        );
        task::spawn("receive blob", async move {
            while let Ok(Some(request)) = incoming.message().await {
                if requests.send(request).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> Result<Response<()>, Status> {
        let dir = self.find(request.metadata())?;
        match std::fs::remove_file(dir.ingest(&request.into_inner().r#ref)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(Response::new(())),
        }
    }
}

/// A write under way. Its file goes when it is dropped uncommitted.
struct Ingest {
    file: File,
    path: PathBuf,
    hasher: sha2::Sha256,
    offset: u64,
    expected: Option<Digest>,
    total: u64,
    writing: Arc<Mutex<HashSet<PathBuf>>>,
    committed: bool,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.path);
        }
        self.writing.lock().expect("no holder of this lock panics").remove(&self.path);
    }
}

/// Answers one message of a write. Blocking.
fn take(
    dir: &BlobDir,
    writing: &Arc<Mutex<HashSet<PathBuf>>>,
    ingest: &mut Option<Ingest>,
    request: pb::WriteContentRequest,
) -> Result<pb::WriteContentResponse, Status> {
    let action = pb::WriteAction::try_from(request.action).map_err(|_| Status::invalid_argument("unknown write action"))?;
    let expected = if request.expected.is_empty() { None } else { Some(parse(&request.expected)?) };
    if ingest.is_none() {
        if let Some(digest) = expected.as_ref().filter(|digest| dir.has(digest)) {
            return Err(Status::already_exists(format!("content {digest}: already exists")));
        }
        *ingest = Some(begin(dir, writing, &request, expected.clone())?);
    }
    let write = ingest.as_mut().expect("it was just begun");
    write.expected = write.expected.take().or(expected);
    write.total = write.total.max(request.total.max(0) as u64);
    if action != pb::WriteAction::Stat {
        if request.offset >= 0 && request.offset as u64 != write.offset && !(request.offset == 0 && request.data.is_empty()) {
            return Err(Status::out_of_range(format!("write is at offset {}, not {}", write.offset, request.offset)));
        }
        write.file.write_all(&request.data).map_err(failed)?;
        write.hasher.update(&request.data);
        write.offset += request.data.len() as u64;
    }
    let mut answer =
        pb::WriteContentResponse { action: request.action, offset: write.offset as i64, total: write.total as i64, ..Default::default() };
    if action == pb::WriteAction::Commit {
        answer.digest = commit(dir, write)?.to_string();
        *ingest = None;
    }
    Ok(answer)
}

fn begin(
    dir: &BlobDir,
    writing: &Arc<Mutex<HashSet<PathBuf>>>,
    request: &pb::WriteContentRequest,
    expected: Option<Digest>,
) -> Result<Ingest, Status> {
    if request.r#ref.is_empty() {
        return Err(Status::invalid_argument("a write needs a ref"));
    }
    let path = dir.ingest(&request.r#ref);
    if !writing.lock().expect("no holder of this lock panics").insert(path.clone()) {
        return Err(Status::unavailable(format!("ref {} locked: unavailable", request.r#ref)));
    }
    let release = |_: &io::Error| {
        writing.lock().expect("no holder of this lock panics").remove(&path);
    };
    let opened = std::fs::create_dir_all(path.parent().expect("it is below the store")).and_then(|()| File::create(&path));
    let file = opened.inspect_err(release).map_err(failed)?;
    let (hasher, total) = (sha2::Sha256::new(), request.total.max(0) as u64);
    Ok(Ingest { file, path, hasher, offset: 0, expected, total, writing: writing.clone(), committed: false })
}

fn commit(dir: &BlobDir, write: &mut Ingest) -> Result<Digest, Status> {
    let digest = Digest::from_sha256(write.hasher.clone().finalize().into());
    if write.total > 0 && write.total != write.offset {
        return Err(Status::failed_precondition(format!("unexpected commit size {}, expected {}", write.offset, write.total)));
    }
    if let Some(expected) = write.expected.as_ref().filter(|expected| **expected != digest) {
        return Err(Status::failed_precondition(format!("unexpected commit digest {digest}, expected {expected}")));
    }
    if dir.has(&digest) {
        return Err(Status::already_exists(format!("content {digest}: already exists")));
    }
    let target = dir.blob(&digest);
    std::fs::create_dir_all(target.parent().expect("it is below the store")).map_err(failed)?;
    std::fs::rename(&write.path, &target).map_err(failed)?;
    write.committed = true;
    Ok(digest)
}
