//! One downloaded file as a layer.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use bytes::Bytes;
use fault::{Context as _, Fault, Result};
use layers::{Draft, Layer, Properties};
use tokio::sync::mpsc;

use crate::error::SourceError;
use crate::scheme::number;
use crate::store::Shared;

/// Name, mode and owner of the file, as the op's attributes give them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Empty: not given.
    pub filename: String,
    /// 0: not given.
    pub perm: i64,
    pub uid: i64,
    pub gid: i64,
}

impl Placement {
    pub fn new(attrs: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let get = |key: &'static str| match attrs.get(key) {
            None => Ok(0),
            Some(text) => number(text).ok_or_else(|| SourceError::Attr { what: key, value: text.clone() }),
        };
        let filename = attrs.get("http.filename").cloned().unwrap_or_default();
        Ok(Self { filename, perm: get("http.perm")?, uid: get("http.uid")?, gid: get("http.gid")? })
    }

    /// Begins a layer with nothing but this file, called `name`.
    pub fn begin(&self, shared: &Shared, properties: Properties, name: String) -> Result<NewFile> {
        let draft = shared.layers.draft(None, properties)?;
        let path = draft.own_files().join(&name);
        let file =
            File::options().write(true).create_new(true).mode(0o600).open(&path).with_context(|| format!("failed to create {name}"))?;
        let (chunks, queue) = mpsc::channel(QUEUE);
        let placement = self.clone();
        let writer = task::spawn("write file", task::blocking(move || write(file, queue, &placement, &path)));
        Ok(NewFile { draft, chunks, writer })
    }
}

/// Chunks that may wait for the disk before the sender does.
const QUEUE: usize = 32;

enum Step {
    Data(Bytes),
    /// The end, with the modification time in Unix seconds.
    End(i64),
}

/// A file on its way into a layer of its own. Dropped unfinished, nothing of it stays.
pub(crate) struct NewFile {
    draft: Draft,
    chunks: mpsc::Sender<Step>,
    writer: task::Task<Result<()>>,
}

impl NewFile {
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.send(Step::Data(data)).await
    }

    pub async fn finish(mut self, modified: i64) -> Result<Layer> {
        self.send(Step::End(modified)).await?;
        self.writer.join().await??;
        Ok(self.draft.commit()?)
    }

    async fn send(&mut self, step: Step) -> Result<()> {
        if self.chunks.send(step).await.is_ok() {
            return Ok(());
        }
        // The writer ended: it knows why.
        let nobody = task::spawn("write file", async { Ok(()) });
        match std::mem::replace(&mut self.writer, nobody).join().await? {
            Err(fault) => Err(fault),
            Ok(()) => Err(Fault::internal("a file's writer ended early")),
        }
    }
}

/// Runs on a blocking thread. If the sender goes away first, so does the draft.
fn write(mut file: File, mut queue: mpsc::Receiver<Step>, placement: &Placement, path: &PathBuf) -> Result<()> {
    while let Some(step) = queue.blocking_recv() {
        let modified = match step {
            Step::Data(data) => {
                file.write_all(&data)?;
                continue;
            }
            Step::End(modified) => modified,
        };
        if placement.uid != 0 || placement.gid != 0 {
            let id = |value: i64| u32::try_from(value).map_err(|_| SourceError::Attr { what: "owner", value: value.to_string() });
            std::os::unix::fs::chown(path, Some(id(placement.uid)?), Some(id(placement.gid)?))?;
        }
        let perm = if placement.perm == 0 { 0o600 } else { (placement.perm & 0o777) as u32 };
        file.set_permissions(std::fs::Permissions::from_mode(perm))?;
        let time = rustix::fs::Timespec { tv_sec: modified, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).map_err(std::io::Error::from)?;
        return Ok(());
    }
    Err(Fault::new(fault::Kind::Canceled, "the download was given up"))
}
