//! Content digests of received entries, taken while their bytes pass.
use std::path::Path;

use oci::Digest;
use session::{Stat, go_mode};
use treehash::{FileHash, Header, Kind, Put, Records};

/// Under which a layer's content digests are attached to it, for whoever computes checksums of it.
pub(crate) const RECORDS: &str = "treehash";

/// Begins the digest of an entry: its metadata.
pub(crate) fn begin(stat: &Stat) -> FileHash {
    let kind = kind(stat);
    let header = Header {
        kind,
        permissions: go_mode::to_posix(stat.mode) & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        size: u64::try_from(stat.size).unwrap_or(0),
        link: if kind == Kind::Symlink { stat.linkname.as_bytes() } else { b"" },
        device: (stat.devmajor, stat.devminor),
    };
    FileHash::new(&header, stat.xattrs.iter().map(|(name, value)| (name.as_bytes(), value.as_ref())))
}

/// What an entry is in the records.
fn put(stat: &Stat) -> Put {
    match kind(stat) {
        Kind::Dir => Put::Dir,
        Kind::Symlink => Put::Symlink { target: stat.linkname.clone().into_bytes() },
        _ => Put::File,
    }
}

fn kind(stat: &Stat) -> Kind {
    let has = |bit| stat.mode & bit != 0;
    match () {
        () if has(go_mode::DIR) => Kind::Dir,
        () if has(go_mode::SYMLINK) => Kind::Symlink,
        () if has(go_mode::CHAR_DEVICE) => Kind::CharDevice,
        () if has(go_mode::DEVICE) => Kind::BlockDevice,
        () if has(go_mode::NAMED_PIPE) => Kind::Fifo,
        () if has(go_mode::SOCKET) => Kind::Socket,
        () => Kind::File,
    }
}

/// The records of a version. `of_file` knows the digests of regular files with content of their own; where it does not, the records are given up, and are
/// computed when they are needed.
pub(crate) fn records(entries: &[Stat], mut of_file: impl FnMut(usize, &Stat) -> Option<Digest>) -> Option<Records> {
    let mut records = Records::received();
    for (place, stat) in entries.iter().enumerate() {
        let path = Path::new("/").join(&stat.path);
        let digest = match kind(stat) {
            Kind::File if !stat.linkname.is_empty() => records.digest_of(&Path::new("/").join(&stat.linkname)).cloned(),
            Kind::File => of_file(place, stat),
            _ => Some(begin(stat).finish()),
        };
        records.put(&path, put(stat), digest?);
    }
    Some(records)
}
