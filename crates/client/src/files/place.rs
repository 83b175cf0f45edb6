//! How what is received is put into an open directory, never following what lies there.
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode as Permissions, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

/// A file on its way. Removed if it is dropped before it is complete.
pub struct Growing {
    file: File,
    directory: Arc<OwnedFd>,
    /// The name that it grows under, while that is not its own.
    temporary: Option<String>,
    name: String,
    permissions: Permissions,
    complete: bool,
}

impl Growing {
    /// Grows under its own name, in a directory that nobody but us has put anything in. If somebody did after all, as [`Growing::aside`].
    pub fn in_place(directory: Arc<OwnedFd>, name: String, permissions: Permissions, id: u32) -> io::Result<Self> {
        let file = match create(&directory, &name, permissions) {
            Err(Errno::EXIST) => return Self::aside(directory, name, permissions, id),
            file => file?,
        };
        Ok(Self { file, directory, temporary: None, name, permissions, complete: false })
    }

    /// Grows under a temporary name, which `id` makes unique, so that what has its name stays whole until then.
    pub fn aside(directory: Arc<OwnedFd>, name: String, permissions: Permissions, id: u32) -> io::Result<Self> {
        let temporary = format!(".tmp.kiln-{}-{id}", std::process::id());
        let file = match create(&directory, &temporary, permissions) {
            Err(Errno::EXIST) => {
                clear(&directory, &temporary)?;
                create(&directory, &temporary, permissions)?
            }
            file => file?,
        };
        Ok(Self { file, directory, temporary: Some(temporary), name, permissions, complete: false })
    }

    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    pub fn complete(mut self, mod_time: i64) -> io::Result<()> {
        // The process's mask may have taken bits, writing the special ones.
        if Permissions::from_raw_mode(rustix::fs::fstat(&self.file)?.st_mode) != self.permissions {
            rustix::fs::fchmod(&self.file, self.permissions)?;
        }
        rustix::fs::futimens(&self.file, &times(mod_time))?;
        if let Some(temporary) = &self.temporary {
            let rename = || rustix::fs::renameat(&self.directory, temporary, &self.directory, &self.name);
            match rename() {
                Err(Errno::ISDIR) => {
                    clear(&self.directory, &self.name)?;
                    rename()?;
                }
                renamed => renamed?,
            }
        }
        self.complete = true;
        Ok(())
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if !self.complete {
            let name = self.temporary.as_ref().unwrap_or(&self.name);
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
    }
}

/// Only where nothing has that name, not even a link that leads nowhere.
fn create(at: &OwnedFd, name: &str, permissions: Permissions) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let plain = permissions & (Permissions::RWXU | Permissions::RWXG | Permissions::RWXO);
    Ok(rustix::fs::openat(at, name, flags, plain)?.into())
}

pub fn open_directory_at(at: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Permissions::empty())?)
}

pub fn times(mod_time: i64) -> Timestamps {
    let at = Timespec { tv_sec: mod_time.div_euclid(1_000_000_000), tv_nsec: mod_time.rem_euclid(1_000_000_000) };
    Timestamps { last_access: at, last_modification: at }
}

pub fn set_times(at: &OwnedFd, name: &str, mod_time: i64) -> io::Result<()> {
    Ok(rustix::fs::utimensat(at, name, &times(mod_time), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Removes what lies at a name, with all below it.
pub fn clear(at: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let directory = open_directory_at(at, name)?;
            for entry in names(&directory)? {
                clear(&directory, &entry)?;
            }
            Ok(rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)?)
        }
        Err(e) => Err(e.into()),
    }
}

pub fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().map_err(|_| io::Error::other("a name is not UTF-8"))?;
        if !matches!(name, "." | "..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
