//! Content digest of a part of a file tree, bit-exact with BuildKit.
//!
//! **Owns** the algorithm (BuildKit's `cache/contenthash`): what of a file counts, how a directory's digest is made of its children's, which
//! files a wildcard or include and exclude patterns select, how paths through symbolic links are followed; and [`Records`], the digests
//! computed so far, which can be kept for the next question about the same tree.
//!
//! **Does not know** disks: a tree is the trait [`Tree`]; whoever receives files over the wire can hash them as they pass ([`FileHash`]) and
//! put the digests in ([`Records::received`]).
//!
//! **Start** at [`Records::checksum`].
//!
//! **Invariants**
//! - The result depends on the tree and the question only, never on what was asked before.
//! - Modification times do not count; names, types, permissions, owners, sizes, link targets, content and most extended attributes do.
mod encode;
mod header;
mod records;
mod select;
mod tree;

pub use encode::DecodeError;
pub use header::{FileHash, Header};
pub use records::{ChecksumError, Put, Records};
pub use select::Options;
pub use tree::{Kind, Loaded, Stat, Tree};

/// The digest of `path` in no tree at all (an empty result).
pub fn checksum_of_nothing(path: &str) -> Result<oci::Digest, ChecksumError> {
    if path == "/" { Ok(oci::Digest::of(b"")) } else { Err(ChecksumError::NoTree { path: path.to_owned() }) }
}
