use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::store::Store;

/// Bytes that are no blob and never will be, for as long as the process wants them. The file has no name: whatever ends the process frees it. It
/// counts as in flight.
pub struct Scratch {
    store: Store,
    file: File,
    /// Where the directory entry was, for errors.
    path: PathBuf,
    end: Mutex<u64>,
}

impl Scratch {
    pub(crate) fn open(store: Store, path: PathBuf) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).map_err(Error::io("create scratch file", &path))?;
        std::fs::remove_file(&path).map_err(Error::io("take the name from scratch file", &path))?;
        Ok(Self { store, file, path, end: Mutex::default() })
    }

    /// Where the bytes begin. What could not be written whole leaves nothing behind.
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        let mut end = self.end.lock().expect("no holder of the lock panics");
        let offset = *end;
        self.file.write_all_at(data, offset).map_err(Error::io("write scratch file", &self.path))?;
        *end += data.len() as u64;
        self.store.scratch_bytes().fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(offset)
    }

    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, offset).map_err(Error::io("read scratch file", &self.path))?;
        Ok(data)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(end) = self.end.get_mut() {
            self.store.scratch_bytes().fetch_sub(*end, Ordering::Relaxed);
        }
    }
}
