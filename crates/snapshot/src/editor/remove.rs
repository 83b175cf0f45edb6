use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::{DRAFT, Editor, Spot, inode};
use crate::PathError;
use crate::layer;
use crate::metadata::Metadata;

impl Editor<'_> {
    /// Removes whatever is at `path`, with everything below it. A symbolic link in the last place is removed itself.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), PathError> {
        let path = path.as_ref();
        let spot = self.spot("remove", path)?;
        if spot.node.is_none() {
            return Err(PathError::at("remove", path)(Errno::NOENT));
        }
        self.remove_at(&spot).map_err(PathError::at("remove", path))
    }

    fn remove_at(&self, spot: &Spot) -> Result<(), Errno> {
        let below = self.merged().child_below(&spot.dir, &spot.name)?.is_some();
        let upper = self.upper(&spot.dir)?;
        self.remove_own(&upper, spot)?;
        if below {
            rustix::fs::mknodat(&upper, spot.name.as_slice(), FileType::CharacterDevice, Mode::empty(), 0)?;
        }
        Ok(())
    }

    /// Takes what the draft has at the spot away (but a whiteout).
    pub(super) fn remove_own(&self, upper: &OwnedFd, spot: &Spot) -> Result<(), Errno> {
        if spot.node.as_ref().is_some_and(|node| node.metadata.is_dir()) {
            self.merged().forget(&spot.path());
        }
        let Some(stat) = layer::stat(upper, &spot.name)? else { return Ok(()) };
        let metadata = Metadata::of(&stat);
        if metadata.is_whiteout() {
            return Ok(());
        }
        if !metadata.is_dir() {
            return rustix::fs::unlinkat(upper, spot.name.as_slice(), AtFlags::empty());
        }
        // The standard library's is safe against links, and takes the parents of this path as they are: directories that we made.
        let full = self.merged().layers[DRAFT as usize].fs.join(OsStr::from_bytes(&spot.path()));
        std::fs::remove_dir_all(full).map_err(inode::errno)
    }
}
