//! eStargz: an archive cut into gzip members, so that each piece of a file can be found and read by itself, with a table of contents as its last member.
//! The format is that of `docs/estargz.md` in containerd's stargz-snapshotter.
mod archive;
mod toc;

use std::io::{self, BufReader, Read, Write};

use content::Hold;
use oci::{Descriptor, Digest, Hasher};
use task::Cancel;

use crate::blobs::{Begun, UNCOMPRESSED};
use crate::compress::{CompressionKind, CompressionRoom, Queue};
use crate::decompress::Hashed;
use crate::error::{Error, Result};
use crate::store::Layers;
use crate::tar::{EntryKind, Header, TarError, Writer};
use toc::Toc;

/// Digest of the table of contents.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Size of the archive with its table of contents.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// The archive member that is the table of contents.
const TOC_NAME: &[u8] = b"stargz.index.json";
/// The most bytes of a file in one member.
const CHUNK: u64 = 4 << 20;
/// Members are compressed together until they are this long.
const BATCH: usize = 1 << 20;
/// A batch, with the longest chunk in it and what it is compressed to, in MiB.
const BATCH_MEMORY: u32 = 11;

/// What is to be known of an archive that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Of the archive with its table of contents.
    pub diff_id: Digest,
    pub uncompressed_size: u64,
    pub toc: Digest,
}

/// Writes the archive that `plain` is. For a blocking thread within the runtime.
pub(crate) fn write(
    plain: impl Read,
    out: impl Write,
    level: Option<i32>,
    room: CompressionRoom,
) -> std::result::Result<Written, TarError> {
    let mut members = Members {
        placed: Placed { out, written: 0, offsets: Vec::new() },
        queue: Queue::new(room),
        level,
        batch: Vec::new(),
        starts: vec![0],
        count: 1,
        hasher: Hasher::new(),
        size: 0,
    };
    let mut toc = Toc::default();
    archive::cut(plain, &mut members, &mut toc)?;
    Ok(members.finish(toc)?)
}

/// Makes such a blob of `source`, a blob with any compression, and describes it. Blocks, within the runtime.
pub(crate) fn store(home: &Layers, source: &Hold, level: Option<i32>, begun: Option<Begun>, cancel: &Cancel) -> Result<(Hold, Descriptor)> {
    let failed = |error: TarError| Error::Unpack { digest: source.digest().clone(), source: error.into() };
    let blob = BufReader::with_capacity(256 << 10, home.content().open_blob(source.digest())?);
    let plain = crate::decompress::decompress(blob).map_err(|e| failed(e.into()))?;
    store_archive(home, plain, level, begun, cancel, failed)
}

/// Makes such a blob of the archive that `plain` is. Blocks, within the runtime.
pub(crate) fn store_archive(
    home: &Layers,
    plain: impl Read,
    level: Option<i32>,
    begun: Option<Begun>,
    cancel: &Cancel,
    failed: impl FnOnce(TarError) -> Error,
) -> Result<(Hold, Descriptor)> {
    let mut ingest = crate::blobs::ingest(home, CompressionKind::Estargz, begun)?;
    let plain = Hashed::new(plain, cancel.clone());
    let written = write(plain, &mut ingest, level, home.0.budget.compression.clone()).map_err(failed)?;
    cancel.check()?;
    let hold = ingest.commit()?;
    home.content().set_label(hold.digest(), UNCOMPRESSED, written.diff_id.as_str());
    let mut descriptor = Descriptor::new(CompressionKind::Estargz.media_type(), hold.digest().clone(), hold.size());
    descriptor.annotations.insert(TOC_DIGEST.to_owned(), written.toc.to_string());
    descriptor.annotations.insert(UNCOMPRESSED_SIZE.to_owned(), written.uncompressed_size.to_string());
    descriptor.annotations.insert(UNCOMPRESSED.to_owned(), written.diff_id.to_string());
    Ok((hold, descriptor))
}

/// The bytes of the archive, in members.
struct Members<W> {
    placed: Placed<W>,
    queue: Queue<io::Result<Vec<Vec<u8>>>>,
    level: Option<i32>,
    /// Members that are not being compressed yet, one behind the other.
    batch: Vec<u8>,
    /// Where each of them starts; one at least.
    starts: Vec<usize>,
    /// Members so far.
    count: usize,
    hasher: Hasher,
    size: u64,
}

/// Members that are written, and where.
struct Placed<W> {
    out: W,
    written: u64,
    offsets: Vec<u64>,
}

impl<W: Write> Placed<W> {
    fn append(&mut self, members: io::Result<Vec<Vec<u8>>>) -> io::Result<()> {
        for member in members? {
            self.offsets.push(self.written);
            self.out.write_all(&member)?;
            self.written += member.len() as u64;
        }
        Ok(())
    }
}

impl<W: Write> Members<W> {
    /// Starts a member and gives its number.
    fn next(&mut self) -> io::Result<usize> {
        if self.batch.len() >= BATCH {
            self.send()?;
        } else {
            self.starts.push(self.batch.len());
        }
        self.count += 1;
        Ok(self.count - 1)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        // Very many headers in a row: readers do not mind where members of these end.
        if self.batch.len() as u64 > 2 * CHUNK {
            self.next()?;
        }
        self.hasher.update(data);
        self.size += data.len() as u64;
        self.batch.extend_from_slice(data);
        Ok(())
    }

    /// Has the batch compressed and begins another, with one member.
    fn send(&mut self) -> io::Result<()> {
        let (data, starts) = (std::mem::take(&mut self.batch), std::mem::replace(&mut self.starts, vec![0]));
        let level = self.level;
        let work = move || {
            let ends = starts.iter().skip(1).copied().chain([data.len()]);
            starts.iter().zip(ends).map(|(&start, end)| crate::compress::gzip(&data[start..end], level)).collect()
        };
        self.queue.start(BATCH_MEMORY, work, &mut |members| self.placed.append(members))
    }

    fn finish(mut self, mut toc: Toc) -> io::Result<Written> {
        self.send()?;
        let Self { mut placed, queue, mut hasher, size, level, .. } = self;
        queue.finish(&mut |members| placed.append(members))?;
        toc.place(&placed.offsets);
        let json = toc.to_json();
        let archive = alone(TOC_NAME, &json)?;
        hasher.update(&archive);
        let at = placed.written;
        placed.out.write_all(&crate::compress::gzip(&archive, level)?)?;
        placed.out.write_all(&footer(at))?;
        Ok(Written { diff_id: hasher.finish(), uncompressed_size: size + archive.len() as u64, toc: Digest::of(&json) })
    }
}

/// An archive with one file.
fn alone(name: &[u8], data: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = Writer::new(Vec::new());
    tar.header(&Header {
        kind: EntryKind::File,
        name: name.to_vec(),
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        size: data.len() as u64,
        mtime: 0,
        device: (0, 0),
        xattrs: Default::default(),
    })?;
    tar.data(data)?;
    tar.finish()
}

/// An empty gzip member of 51 bytes whose extra field says where the table of contents starts.
fn footer(at: u64) -> Vec<u8> {
    let field = format!("{at:016x}STARGZ");
    let length = field.len() as u16;
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    out.extend_from_slice(&(length + 4).to_le_bytes());
    out.extend_from_slice(b"SG");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(field.as_bytes());
    // One last stored block with nothing in it, its checksum and its length.
    out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    out.extend_from_slice(&[0; 8]);
    out
}
