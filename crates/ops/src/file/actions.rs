//! mkdir, mkfile, symlink, rm.
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use snapshot::{Attributes, Editor, Follow, Time};

use super::error::ActionError;
use super::owner::Ids;
use super::wildcard;

/// A time from the wire, where -1 is none.
pub(super) fn time(timestamp: i64) -> Option<Time> {
    (timestamp != -1).then(|| Time::from_unix_nanos(timestamp))
}

fn attributes(owner: Option<Ids>, timestamp: i64) -> Attributes {
    Attributes { owner, permissions: None, times: time(timestamp).map(|time| (time, time)) }
}

pub(super) fn mkdir(
    editor: &mut Editor<'_>,
    path: &str,
    mode: i32,
    parents: bool,
    owner: Option<Ids>,
    timestamp: i64,
) -> Result<(), ActionError> {
    let path = editor.resolve(path, Follow::Yes)?;
    let attributes = attributes(owner, timestamp);
    if parents {
        let made = make_dirs(editor, &path, mode as u32, owner)?;
        return fix_times(editor, &made, time(timestamp));
    }
    // Whatever is there already is fine.
    if editor.lookup(&path, Follow::No)?.is_some() {
        return Ok(());
    }
    editor.mkdir(&path, mode as u32 & 0o777)?;
    Ok(editor.set(&path, &attributes)?)
}

/// Makes a directory with its missing parents, all with the same mode and owner; returns those made, outermost first.
pub(super) fn make_dirs(editor: &mut Editor<'_>, path: &Path, mode: u32, owner: Option<Ids>) -> Result<Vec<PathBuf>, ActionError> {
    let made = editor.mkdir_all(path, mode & 0o777)?;
    if let Some((uid, gid)) = owner {
        for dir in &made {
            editor.set_owner(dir, uid, gid)?;
        }
    }
    Ok(made)
}

/// Gives directories their time once nothing more is made in them, innermost first.
pub(super) fn fix_times(editor: &mut Editor<'_>, dirs: &[PathBuf], time: Option<Time>) -> Result<(), ActionError> {
    if let Some(time) = time {
        for dir in dirs.iter().rev() {
            editor.set_times(dir, time, time)?;
        }
    }
    Ok(())
}

pub(super) fn mkfile(
    editor: &mut Editor<'_>,
    path: &str,
    mode: i32,
    data: &[u8],
    owner: Option<Ids>,
    timestamp: i64,
) -> Result<(), ActionError> {
    let path = editor.resolve(path, Follow::Yes)?;
    let mut file = editor.write_file(&path, mode as u32 & 0o777)?;
    file.write_all(data).map_err(|source| ActionError::Read { message: format!("write {}", path.display()), source })?;
    drop(file);
    Ok(editor.set(&path, &attributes(owner, timestamp))?)
}

pub(super) fn symlink(editor: &mut Editor<'_>, target: &str, path: &str, owner: Option<Ids>, timestamp: i64) -> Result<(), ActionError> {
    let resolved = editor.resolve(path, Follow::Yes)?;
    editor
        .symlink(target, &resolved)
        .map_err(|error| ActionError::Read { message: format!("symlink {target} {}", resolved.display()), source: error.source })?;
    Ok(editor.set(&resolved, &attributes(owner, timestamp))?)
}

pub(super) fn rm(editor: &mut Editor<'_>, path: &str, allow_not_found: bool, allow_wildcard: bool) -> Result<(), ActionError> {
    if !allow_wildcard {
        return remove(editor, Path::new(path), allow_not_found);
    }
    for found in wildcard::resolve(editor, path, false)? {
        remove(editor, &found, allow_not_found)?;
    }
    Ok(())
}

fn remove(editor: &mut Editor<'_>, path: &Path, allow_not_found: bool) -> Result<(), ActionError> {
    let path = patterns::join(&["/", &path.to_string_lossy()]);
    if path == "/" {
        return Err(ActionError::text("rmPath: invalid empty path"));
    }
    let place = match editor.resolve(&path, Follow::No) {
        Err(error) if error.errno() == Some(Errno::NOTDIR.raw_os_error()) => return Err(ActionError::os("unlinkat", path, Errno::NOTDIR)),
        other => other?,
    };
    if editor.lookup(&place, Follow::No)?.is_some() {
        return Ok(editor.remove(&place)?);
    }
    if allow_not_found { Ok(()) } else { Err(ActionError::os("stat", place, Errno::NOENT)) }
}
