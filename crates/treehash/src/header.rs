use std::io::{self, Read, Write};

use oci::Digest;

use crate::tree::{Kind, Stat};

/// What of a file's metadata counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky. Those of symbolic links do not count.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    /// Counts for regular files and sockets.
    pub size: u64,
    /// The target of a symbolic link.
    pub link: &'a [u8],
    /// Numbers of a device, where they came over the wire. BuildKit's own look at a disk always finds 0, by an old mistake in a mask, and
    /// digests must agree.
    pub device: (i64, i64),
}

impl Header<'static> {
    /// As found on a disk; symbolic links need their target too.
    pub fn of(stat: &Stat) -> Self {
        Self { kind: stat.kind, permissions: stat.permissions, uid: stat.uid, gid: stat.gid, size: stat.size, link: b"", device: (0, 0) }
    }
}

/// The running digest of one file: starts with its header, then takes its bytes. For a directory it is finished at once: this is the digest
/// of its header only.
///
/// The header is the one that Docker's old "tarsum" took from a tar header: field names and values run together, without the name and the
/// modification time.
pub struct FileHash(oci::Hasher);

impl FileHash {
    pub fn new<'x>(header: &Header<'_>, xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>) -> Self {
        let (flag, sized) = match header.kind {
            // Sockets are written as what is left of them without their type: regular files.
            Kind::File | Kind::Socket => ('0', true),
            Kind::Symlink => ('2', false),
            Kind::CharDevice => ('3', false),
            Kind::BlockDevice => ('4', false),
            Kind::Dir => ('5', false),
            Kind::Fifo => ('6', false),
        };
        let mut mode = header.permissions & 0o7777;
        let mut link: &[u8] = b"";
        if header.kind == Kind::Symlink {
            mode |= 0o777;
            link = header.link;
        }
        let size = if sized { header.size } else { 0 };
        let mut hasher = oci::Hasher::new();
        hasher.update(format!("namemode{mode}uid{}gid{}size{size}typeflag{flag}linkname", header.uid, header.gid));
        hasher.update(link);
        hasher.update(format!("unamegnamedevmajor{}devminor{}", header.device.0, header.device.1));
        let mut counted: Vec<(&[u8], &[u8])> = xattrs.into_iter().filter(|(name, _)| counts(name)).collect();
        counted.sort_unstable();
        for (name, value) in counted {
            hasher.update(name);
            hasher.update(value);
        }
        Self(hasher)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        self.0.finish()
    }

    /// Takes the `size` bytes of `content`.
    pub(crate) fn read(&mut self, content: &mut dyn Read, size: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut left = size;
        loop {
            // Not asking for the end saves a call for each file.
            if left == 0 {
                return Ok(());
            }
            match content.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.0.update(&buffer[..length]);
                    left -= length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Write for FileHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn counts(xattr: &[u8]) -> bool {
    xattr == b"security.capability" || !(xattr.starts_with(b"security.") || xattr.starts_with(b"system."))
}
