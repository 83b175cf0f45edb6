//! Cuts an archive into members and notes what is in them.
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use oci::Hasher;

use super::toc::{Chunk, Toc};
use super::{CHUNK, Members, TOC_NAME};
use crate::tar::{Entry, EntryKind, Reader, TarError};

/// Every byte of `plain` goes to the members as it is. A file's data starts one, and each [`CHUNK`] of it; headers go where the data before them went.
pub(super) fn cut(plain: impl Read, members: &mut Members<impl Write>, toc: &mut Toc) -> Result<(), TarError> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let mut archive = Reader::new(Tee { input: plain, seen: seen.clone() });
    let mut buffer = vec![0; 256 << 10];
    while let Some(entry) = archive.next()? {
        members.write(&seen.take())?;
        if is_toc(&entry.name) {
            return Err(TarError::Header("the archive has a table of contents already"));
        }
        if entry.segments.is_some() {
            return Err(TarError::Header("estargz knows no files with holes"));
        }
        let (mut whole, mut chunks, mut done) = (Hasher::new(), Vec::new(), 0);
        while done < entry.size && entry.kind == EntryKind::File {
            let length = CHUNK.min(entry.size - done);
            let member = members.next()?;
            let mut digest = Hasher::new();
            let mut left = length;
            while left > 0 {
                let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                archive.read_exact(&mut buffer[..most])?;
                whole.update(&buffer[..most]);
                digest.update(&buffer[..most]);
                members.write(&seen.take())?;
                left -= most as u64;
            }
            let size = if length == CHUNK { length } else { 0 };
            chunks.push(Chunk { member, offset: done, size, digest: digest.finish().to_string() });
            done += length;
        }
        toc.add(&entry, whole_digest(&entry, whole), chunks);
    }
    archive.drain()?;
    members.write(&seen.take())?;
    Ok(())
}

fn whole_digest(entry: &Entry, hasher: Hasher) -> String {
    if entry.kind == EntryKind::File { hasher.finish().to_string() } else { String::new() }
}

fn is_toc(name: &[u8]) -> bool {
    let parts: Vec<&[u8]> = name.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    parts == [TOC_NAME]
}

/// Remembers what was read.
struct Tee<R> {
    input: R,
    seen: Rc<RefCell<Vec<u8>>>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(out)?;
        self.seen.borrow_mut().extend_from_slice(&out[..read]);
        Ok(read)
    }
}
