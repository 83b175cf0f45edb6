use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

use crate::hold::Hold;

/// An open blob. Holds it.
#[derive(Debug)]
pub struct Reader {
    file: File,
    hold: Hold,
}

impl Reader {
    pub(crate) fn new(file: File, hold: Hold) -> Self {
        Self { file, hold }
    }

    pub fn size(&self) -> u64 {
        self.hold.size()
    }

    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads at most `out.len()` bytes from `offset`; less only at the end.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            match self.file.read_at(&mut out[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.file.read(out)
    }
}

impl Seek for Reader {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}
