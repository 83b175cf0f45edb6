//! What was removed but is not deleted yet. Throwing is one rename; emptying is for a background thread.
//!
//! Large trees are deleted in two steps: their files at once, their directories some minutes later. For up to six minutes after a file was
//! deleted, ext4 avoids its inode, and where many were, each new file costs a look at all of them. New trees go where there are few
//! directories; the empty ones that stay keep them away from there.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::{Error, Result, TreeId};

pub(crate) struct Trash {
    path: PathBuf,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
    emptying: Mutex<()>,
}

impl std::fmt::Debug for Trash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trash").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Trash {
    pub(crate) fn new(path: PathBuf, wake: Option<Box<dyn Fn() + Send + Sync>>) -> Self {
        Self { path, wake, emptying: Mutex::default() }
    }

    /// Moves `victim` out of the way, whatever its old name.
    pub(crate) fn throw(&self, victim: &Path) -> Result<()> {
        fs::rename(victim, self.path.join(TreeId::fresh().as_str())).map_err(Error::io("remove", victim))?;
        if let Some(wake) = &self.wake {
            wake();
        }
        Ok(())
    }

    /// Deletes what is in the trash now and returns how many trees that was. A second thread waits for the first, which may have done it all.
    pub(crate) fn empty(&self) -> Result<usize> {
        let _alone = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        // One that cannot be deleted does not keep the others.
        let (mut count, mut failure) = (0, None);
        // Listed first: parts of deep trees come up here on their way out.
        let listed = fs::read_dir(&self.path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        for entry in listed.map_err(Error::io("read", &self.path))? {
            let path = entry.path();
            match self.delete(&path) {
                Ok(done) => count += usize::from(done),
                Err(error) => failure = failure.or(Some(Error::io("delete", &path)(error))),
            }
        }
        failure.map_or(Ok(count), Err)
    }

    /// Whether anything was done.
    fn delete(&self, path: &Path) -> io::Result<bool> {
        if path.extension().is_some_and(|extension| extension == HUSK) {
            return if is_old(path) { fs::remove_dir_all(path).map(|()| true) } else { Ok(false) };
        }
        match hollow(path) {
            Ok(count) if count >= MANY => {
                fs::write(path.join(SINCE), "")?;
                fs::rename(path, path.with_extension(HUSK))?;
            }
            Ok(_) => fs::remove_dir_all(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => self.delete_deep(path)?,
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Deletes a tree with paths that are too long for the kernel: each directory in it is brought up into the trash first. Going down into it would take
    /// a descriptor and a piece of the stack for each of its levels, of which there may be any number.
    fn delete_deep(&self, path: &Path) -> io::Result<()> {
        let mut pending = vec![path.to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    let raised = self.path.join(TreeId::fresh().as_str());
                    fs::rename(entry.path(), &raised)?;
                    pending.push(raised);
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_dir(&dir)?;
        }
        Ok(())
    }
}

/// The extension of a tree whose files are deleted.
const HUSK: &str = "husk";
/// In a husk: its time is when that was.
const SINCE: &str = ".since";
/// From this many files on a tree is deleted in two steps.
const MANY: usize = 1000;
/// How long ext4 remembers.
const RECENT: Duration = Duration::from_secs(6 * 60);

fn is_old(husk: &Path) -> bool {
    let since = fs::metadata(husk.join(SINCE)).and_then(|metadata| metadata.modified());
    since.is_err() || since.is_ok_and(|since| since.elapsed().map_or(true, |age| age > RECENT))
}

/// Deletes all that is no directory; returns how many that was.
fn hollow(root: &Path) -> io::Result<usize> {
    let mut count = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                fs::remove_file(entry.path())?;
                count += 1;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trash(dir: &Path) -> Trash {
        let path = dir.join("trash");
        fs::create_dir(&path).unwrap();
        Trash::new(path, None)
    }

    fn left(trash: &Trash) -> Vec<PathBuf> {
        fs::read_dir(&trash.path).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn of_large_trees_the_directories_stay_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, victim) = (trash(dir.path()), dir.path().join("victim"));
        fs::create_dir_all(victim.join("a/b")).unwrap();
        for number in 0..MANY {
            fs::write(victim.join("a/b").join(number.to_string()), "").unwrap();
        }
        std::os::unix::fs::symlink("/", victim.join("link")).unwrap();
        trash.throw(&victim).unwrap();
        assert_eq!(trash.empty().unwrap(), 1);
        let [husk] = &left(&trash)[..] else { panic!("one husk stays") };
        assert_eq!(fs::read_dir(husk.join("a/b")).unwrap().count(), 0);
        assert_eq!(trash.empty().unwrap(), 0);
        let long_ago = std::time::SystemTime::now() - RECENT - Duration::from_secs(1);
        fs::File::open(husk.join(SINCE)).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(trash.empty().unwrap(), 1);
        assert!(left(&trash).is_empty());
    }

    #[test]
    fn deep_trees_and_files_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, victim) = (trash(dir.path()), dir.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        // Deeper than a path can be long, and than there are descriptors, from the inside out.
        let name = format!("{}n", "n/".repeat(1500));
        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        for _ in 0..4 {
            let outer = dir.path().join("outer");
            fs::create_dir_all(outer.join(&name)).unwrap();
            fs::rename(&parts, outer.join(&name)).unwrap();
            fs::rename(&outer, &parts).unwrap();
        }
        fs::rename(&parts, victim.join("deep")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        trash.throw(&victim).unwrap();
        trash.throw(&dir.path().join("file")).unwrap();
        assert_eq!(trash.empty().unwrap(), 2);
        assert!(left(&trash).is_empty());
    }
}
