use std::io::{self, Read};

use super::block::{self, BLOCK, Block, field};
use super::pax;
use super::sparse::{self, Segment};

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("invalid tar header: {0}")]
    Header(&'static str),
    #[error("unsupported tar entry type {:?}", char::from(*.0))]
    Type(u8),
    #[error("could not read the archive")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member of an archive. Names are bytes: they need not be UTF-8.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub kind: EntryKind,
    pub name: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of the file, holes included.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    pub atime: Option<(i64, u32)>,
    pub device: (u32, u32),
    pub xattrs: Vec<pax::Record>,
    /// Where the data lies in a file with holes; nothing else of it is stored.
    pub segments: Option<Vec<Segment>>,
}

/// Extended headers and long names may not be longer than this.
const LONGEST_HEADER: u64 = 1 << 20;

/// Reads an archive entry by entry. As [`Read`] it gives the stored data of the current one.
pub(crate) struct Reader<R> {
    input: R,
    /// Stored data of the current entry not read yet.
    data: u64,
    /// What fills its last block.
    padding: u64,
    ended: bool,
}

#[derive(Default)]
struct Extensions {
    pax: Vec<pax::Record>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, data: 0, padding: 0, ended: false }
    }

    /// The next entry; data of the current one that was not read is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            block::verify(&header)?;
            match header[field::TYPE] {
                b'x' => extensions.pax = pax::parse(&self.small(&header)?)?,
                b'g' => {
                    pax::parse(&self.small(&header)?)?;
                }
                b'L' => extensions.name = Some(block::text(&self.small(&header)?).to_vec()),
                b'K' => extensions.link = Some(block::text(&self.small(&header)?).to_vec()),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads to the end of the input, past the end of the archive. What follows must still count for a digest.
    pub fn drain(&mut self) -> Result<(), TarError> {
        io::copy(&mut self.input, &mut io::sink())?;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Block>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = [0; BLOCK];
        if !self.fill(&mut header)? {
            self.ended = true;
            return Ok(None);
        }
        if header.iter().any(|&b| b != 0) {
            return Ok(Some(header));
        }
        self.ended = true;
        if self.fill(&mut header)? && header.iter().any(|&b| b != 0) {
            return Err(TarError::Header("one empty block"));
        }
        Ok(None)
    }

    /// `false` at the end of the input; an error in the middle of a block.
    fn fill(&mut self, block: &mut Block) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let left = self.data + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())?;
        // The padding after the very last data may be missing.
        if skipped < self.data {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    fn expect(&mut self, size: u64) {
        (self.data, self.padding) = (size, size.wrapping_neg() % BLOCK as u64);
    }

    /// The data of a header that only describes the next entry.
    fn small(&mut self, header: &Block) -> Result<Vec<u8>, TarError> {
        let size = unsigned(block::number(&header[field::SIZE])?)?;
        if size > LONGEST_HEADER {
            return Err(TarError::Header("extended header too long"));
        }
        self.expect(size);
        let mut data = Vec::with_capacity(size as usize);
        self.read_to_end(&mut data)?;
        if data.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(data)
    }

    fn entry(&mut self, header: &Block, extensions: Extensions) -> Result<Entry, TarError> {
        let mut entry = base(header)?;
        let mut stored = entry.size;
        let mut sparse_name = None;
        let mut real_size = None;
        let mut version = (None, None);
        for (key, value) in &extensions.pax {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                entry.xattrs.retain(|(known, _)| known != name);
                entry.xattrs.push((name.to_vec(), value.clone()));
                continue;
            }
            // An empty value takes a record back.
            if value.is_empty() {
                continue;
            }
            match key.as_slice() {
                b"path" => entry.name = value.clone(),
                b"linkpath" => entry.link = value.clone(),
                b"uid" => entry.uid = id(pax::number(value)?)?,
                b"gid" => entry.gid = id(pax::number(value)?)?,
                b"size" => stored = unsigned(pax::number(value)?)?,
                b"mtime" => entry.mtime = pax::time(value)?,
                b"atime" => entry.atime = Some(pax::time(value)?),
                b"GNU.sparse.name" => sparse_name = Some(value.clone()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => real_size = Some(unsigned(pax::number(value)?)?),
                b"GNU.sparse.major" => version.0 = Some(pax::number(value)?),
                b"GNU.sparse.minor" => version.1 = Some(pax::number(value)?),
                _ => {}
            }
        }
        entry.name = sparse_name.or(extensions.name).unwrap_or(entry.name);
        entry.link = extensions.link.unwrap_or(entry.link);
        // Before POSIX a directory was a file with a slash at its end.
        if matches!(header[field::TYPE], 0 | b'0') && entry.name.ends_with(b"/") {
            entry.kind = EntryKind::Directory;
        }
        if entry.kind != EntryKind::File {
            stored = 0;
        }
        entry.size = stored;
        self.expect(stored);
        self.find_holes(&mut entry, header, &extensions.pax, real_size, version)?;
        Ok(entry)
    }

    fn find_holes(
        &mut self,
        entry: &mut Entry,
        header: &Block,
        pax: &[pax::Record],
        real_size: Option<u64>,
        version: (Option<i64>, Option<i64>),
    ) -> Result<(), TarError> {
        let old = pax.iter().any(|(key, _)| matches!(key.as_slice(), b"GNU.sparse.map" | b"GNU.sparse.offset"));
        let segments = match version {
            _ if header[field::TYPE] == b'S' => {
                entry.size = unsigned(block::number(&header[field::GNU_REAL_SIZE])?)?;
                sparse::gnu(header, &mut self.input)?
            }
            (Some(1), Some(0)) => {
                let (map, taken) = sparse::pax_1(self)?;
                debug_assert!(taken % BLOCK as u64 == 0, "the map fills whole blocks");
                map
            }
            (Some(0), Some(0 | 1)) => sparse::pax_0(pax)?,
            (None, None) if old => sparse::pax_0(pax)?,
            _ => return Ok(()),
        };
        entry.size = real_size.unwrap_or(entry.size);
        sparse::validate(&segments, entry.size, self.data)?;
        entry.segments = Some(segments);
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut out[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        Ok(read)
    }
}

/// What the header block itself says.
fn base(header: &Block) -> Result<Entry, TarError> {
    let kind = match header[field::TYPE] {
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(TarError::Type(other)),
    };
    let posix = &header[field::MAGIC] == b"ustar\0";
    let gnu = &header[field::MAGIC] == b"ustar ";
    let star = posix && &header[field::STAR_TRAILER] == b"tar\0";
    let prefix = match (star, posix) {
        (true, _) => block::text(&header[field::STAR_PREFIX]),
        (false, true) => block::text(&header[field::PREFIX]),
        (false, false) => b"",
    };
    let name = block::text(&header[field::NAME]);
    let device = |range| if posix || gnu { block::number(&header[range]).and_then(id) } else { Ok(0) };
    let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    Ok(Entry {
        kind,
        name: if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() },
        link: block::text(&header[field::LINK]).to_vec(),
        mode: (block::number(&header[field::MODE])? & 0o7777) as u32,
        uid: id(block::number(&header[field::UID])?)?,
        gid: id(block::number(&header[field::GID])?)?,
        size: unsigned(block::number(&header[field::SIZE])?)?,
        mtime: (block::number(&header[field::MTIME])?, 0),
        atime: None,
        device: if is_device { (device(field::DEV_MAJOR)?, device(field::DEV_MINOR)?) } else { (0, 0) },
        xattrs: Vec::new(),
        segments: None,
    })
}

fn unsigned(value: i64) -> Result<u64, TarError> {
    u64::try_from(value).map_err(|_| TarError::Header("negative number"))
}

fn id(value: i64) -> Result<u32, TarError> {
    u32::try_from(value).map_err(|_| TarError::Header("id out of range"))
}
