//! What software a file tree holds, as an SPDX document: the built-in scanner of bills of materials.
//!
//! Owns the readers of package databases (dpkg, apk, RPM) and of the files in which languages' package managers write down what they chose, package URLs, and
//! the form of the document. Knows nothing of builds, layers or attestations; whoever exports the document adds which layer each file is in.
//!
//! Start at [`scan`], which walks a tree, and [`Document`], which writes down what was found. `debian`, `alpine` and `rpm` read systems' databases, `lock` what
//! languages leave behind, `go_binary` what Go's linker puts into programs.
//!
//! Invariants: nothing of the tree is run, and nothing outside of it is read; the same tree gives the same document, byte for byte, but for the time that the
//! caller names; a file that cannot be read as what its name says is noted in the document and fails nothing.
mod alpine;
mod debian;
mod go_binary;
mod lock;
mod package;
mod release;
mod rpm;
mod spdx;
mod tree;

pub use package::{Package, purl};
pub use spdx::{Document, SPDX_VERSION};
pub use tree::{Evidence, Found, ScanError, scan};

/// What fuzz targets call; see `docs/fuzzing.md`.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads a database of RPM, in whichever form.
    pub fn rpm(database: &[u8]) -> Result<Vec<crate::Package>, crate::rpm::RpmError> {
        crate::rpm::parse(&mut std::io::Cursor::new(database), &crate::release::Release::default())
    }
}
