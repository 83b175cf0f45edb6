//! Only one daemon works on a root. The lock's file says which, for who finds it locked.
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Part of what a daemon says whose root is in use; upstream's words.
pub const IN_USE: &str = "another instance running?";
/// Comes before the addresses of the daemon that uses it.
pub const LISTENS_ON: &str = "which listens on ";

/// Makes the root and takes its lock, which is held until the file is closed.
pub fn hold(root: &Path, addresses: &[String]) -> Result<File, String> {
    let failed = |e: std::io::Error| format!("failed to prepare {}: {e}", root.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
    let path = root.join("buildkitd.lock");
    let mut file = File::options().create(true).read(true).write(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let refusal = format!("could not lock {}, {IN_USE}", path.display());
            return Err(holder(&mut file).map_or(refusal.clone(), |holder| format!("{refusal} It is {holder}")));
        }
        Err(e) => return Err(format!("could not lock {}: {e}", path.display())),
    }
    // On a full disk, say: the lock is what counts.
    if let Err(error) = write_holder(&mut file, addresses) {
        tracing::warn!(%error, "{} does not say whose it is", path.display());
    }
    Ok(file)
}

/// Two lines: the process, as its own host counts them, and where it listens.
fn write_holder(file: &mut File, addresses: &[String]) -> std::io::Result<()> {
    let host = rustix::system::uname();
    let text = format!("process {} on {}\n{}\n", std::process::id(), host.nodename().to_string_lossy(), addresses.join(" "));
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

/// `None` where it does not say: another program's lock, or one that was taken this moment.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).ok()?;
    let (process, addresses) = text.strip_suffix('\n')?.split_once('\n')?;
    Some(format!("{process}, {LISTENS_ON}{addresses}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_hears_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let path = root.join("buildkitd.lock");
        let first = hold(&root, &["unix:///run/first.sock".into(), "tcp://127.0.0.1:1234".into()]).unwrap();
        let refused = hold(&root, &[]).unwrap_err();
        let start = format!("could not lock {}, another instance running? It is process {} on ", path.display(), std::process::id());
        assert!(refused.starts_with(&start), "{refused}");
        assert!(refused.ends_with(", which listens on unix:///run/first.sock tcp://127.0.0.1:1234"), "{refused}");
        drop(first);

        let second = hold(&root, &["unix:///run/b".into()]).unwrap();
        assert!(hold(&root, &[]).unwrap_err().ends_with("which listens on unix:///run/b"), "nothing of the first is left");
        // As another program's lock.
        second.set_len(0).unwrap();
        assert_eq!(hold(&root, &[]).unwrap_err(), format!("could not lock {}, another instance running?", path.display()));
    }
}
