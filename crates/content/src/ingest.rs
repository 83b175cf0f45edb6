use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::{Digest, Hasher};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::growing::{Growing, State};
use crate::hold::Hold;
use crate::store::Store;

/// A blob on its way in. Hashes what is written. Dropped without a commit, it stays on disk to be resumed under the same key, unless it
/// was begun by [`Store::ingest_once`].
pub struct Ingest {
    store: Store,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    offset: u64,
    expected: Option<(Digest, u64)>,
    /// Key in the set of running ingests; freed on drop.
    key: String,
    resumable: bool,
    finished: bool,
    /// Told how far it is, if anyone asked.
    watched: Option<watch::Sender<State>>,
}

impl Ingest {
    pub(crate) fn open(store: Store, path: PathBuf, key: String, expected: Option<(Digest, u64)>, resumable: bool) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(&path).map_err(Error::io("open partial blob", &path))?;
        let mut ingest =
            Self { store, file, path, hasher: Hasher::new(), offset: 0, expected, key, resumable, finished: false, watched: None };
        ingest.rehash()?;
        Ok(ingest)
    }

    /// Brings the hash up to what an earlier ingest left.
    fn rehash(&mut self) -> Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            match (&self.file).read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.hasher.update(&buffer[..n]);
                    self.offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read partial blob", &self.path)(e)),
            }
        }
        match &self.expected {
            Some((_, size)) if self.offset > *size => self.truncate(),
            _ => Ok(()),
        }
    }

    /// How many bytes are there already; where the source must go on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is there already, for who wants the whole stream.
    pub fn earlier(&self) -> Result<io::Take<File>> {
        earlier(&self.path, self.offset)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub fn expected(&self) -> Option<&(Digest, u64)> {
        self.expected.as_ref()
    }

    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        if let Some((digest, size)) = &self.expected {
            let actual = self.offset + data.len() as u64;
            if actual > *size {
                return Err(Error::Size { digest: digest.clone(), expected: *size, actual });
            }
        }
        self.file.write_all(data).map_err(Error::io("write partial blob", &self.path))?;
        self.hasher.update(data);
        self.offset += data.len() as u64;
        if let Some(watched) = &self.watched {
            watched.send_modify(|state| state.written = self.offset);
        }
        Ok(())
    }

    /// For who wants to read what is written from now on while it is. To be truncated it must not be then.
    pub fn growing(&mut self) -> Result<Growing> {
        let file = self.file.try_clone().map_err(Error::io("open partial blob", &self.path))?;
        let written = self.offset;
        let watched = self.watched.get_or_insert_with(|| watch::Sender::new(State { written, whole: None }));
        Ok(Growing::new(Arc::new(file), watched.subscribe()))
    }

    /// Starts over, for sources that cannot go on in the middle.
    pub fn truncate(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io("truncate partial blob", &self.path))?;
        self.hasher = Hasher::new();
        self.offset = 0;
        Ok(())
    }

    /// Verifies and stores. What was expected and did not come leaves nothing behind, not even a partial blob.
    pub fn commit(mut self) -> Result<Hold> {
        let actual = std::mem::take(&mut self.hasher).finish();
        let wrong = match &self.expected {
            Some((digest, size)) if self.offset != *size => {
                Some(Error::Size { digest: digest.clone(), expected: *size, actual: self.offset })
            }
            Some((digest, _)) if *digest != actual => Some(Error::Mismatch { expected: digest.clone(), actual: actual.clone() }),
            _ => None,
        };
        if let Some(error) = wrong {
            // What is short may still become whole; what has the wrong bytes cannot.
            self.resumable &= matches!(error, Error::Size { .. }) && self.expected.as_ref().is_some_and(|(_, size)| self.offset < *size);
            return Err(error);
        }
        let hold = self.store.adopt(&self.path, &actual, self.offset)?;
        self.finished = true;
        if let Some(watched) = &self.watched {
            watched.send_modify(|state| state.whole = Some(hold.clone()));
        }
        Ok(hold)
    }

    /// Gives up for good.
    pub fn abort(mut self) {
        self.resumable = false;
    }
}

pub(crate) fn earlier(path: &Path, length: u64) -> Result<io::Take<File>> {
    Ok(File::open(path).map_err(Error::io("open partial blob", path))?.take(length))
}

impl Write for Ingest {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ingest::write(self, data).map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::other(other),
        })?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.finished
            && !self.resumable
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = ?self.path, "could not remove a partial blob");
        }
        self.store.end_ingest(&self.key);
    }
}
