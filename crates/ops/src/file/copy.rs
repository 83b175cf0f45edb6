//! The copy action as a whole: sources, destination, parents.
use std::path::{Path, PathBuf};

use llb::Copy;
use rustix::io::Errno;
use snapshot::{Editor, Follow, View};
use task::Cancel;

use super::actions::{fix_times, make_dirs, time};
use super::copier::{Change, Copier};
use super::error::ActionError;
use super::owner::Ids;
use super::{unpack, wildcard};

const PARENT_MODE: u32 = 0o755;

pub(super) fn copy(source: &View, editor: &mut Editor<'_>, spec: &Copy, owner: Option<Ids>, cancel: &Cancel) -> Result<(), ActionError> {
    let (src, dest) = (clean(&spec.src), clean(&spec.dest));
    if !spec.create_dest_path {
        parent_must_exist(editor, &spec.dest)?;
    }
    let sources = if spec.allow_wildcard {
        let found = wildcard::resolve(source, &src, spec.follow_symlink)?;
        if found.is_empty() && !spec.allow_empty_wildcard {
            return Err(ActionError::text(format!("{src} not found")));
        }
        found.into_iter().map(|path| path.to_string_lossy().into_owned()).collect()
    } else {
        vec![src]
    };
    for src in &sources {
        if spec.attempt_unpack && unpack::unpack(source, src, editor, &dest, owner, time(spec.timestamp), cancel)? {
            continue;
        }
        copy_one(source, src, editor, &dest, spec, owner, cancel)?;
    }
    Ok(())
}

fn parent_must_exist(editor: &Editor<'_>, dest: &str) -> Result<(), ActionError> {
    let place = editor.resolve(patterns::join(&["/", dest]), Follow::Yes)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    match editor.lookup(parent, Follow::No)? {
        Some(_) => Ok(()),
        None => Err(ActionError::os("lstat", parent, Errno::NOENT).within(format!("failed to stat {dest}"))),
    }
}

fn copy_one(
    source: &View,
    src: &str,
    editor: &mut Editor<'_>,
    dest: &str,
    spec: &Copy,
    owner: Option<Ids>,
    cancel: &Cancel,
) -> Result<(), ActionError> {
    let parent_mode = if spec.mode_str.is_empty() && spec.mode != -1 { spec.mode as u32 } else { PARENT_MODE };
    let (dir, name) = dest.rsplit_once('/').expect("a cleaned path has a slash");
    let parent = if name.is_empty() || name == "." { dest } else { dir };
    let parent = editor.resolve(parent, Follow::Yes)?;
    let mut made = make_dirs(editor, &parent, parent_mode, owner)?;

    let change = Change::new(owner, &spec.mode_str, spec.mode, time(spec.timestamp))?;
    let dest = editor.resolve(patterns::clean(dest), Follow::Yes)?;
    let top = wildcard::place(source, src, spec.follow_symlink)?;
    let top = source.require(&top, Follow::No)?;
    let (target, parent) = target(editor, &dest, src, top.metadata().is_dir(), spec.dir_copy_contents)?;
    made.extend(make_dirs(editor, &parent, parent_mode, owner)?);

    Copier::new(source, editor, change, spec, cancel)?.copy_top(&top, &target)?;
    fix_times(editor, &made, time(spec.timestamp))
}

/// What to copy to, and the directory that must be there for it.
fn target(editor: &Editor<'_>, dest: &Path, src: &str, is_dir: bool, contents: bool) -> Result<(PathBuf, PathBuf), ActionError> {
    let existing = editor.lookup(dest, Follow::Yes)?;
    let into = match &existing {
        Some(_) if is_dir => !contents,
        Some(existing) => existing.metadata().is_dir(),
        None => false,
    };
    let target = if into { PathBuf::from(patterns::join(&[&dest.to_string_lossy(), patterns::base(src)])) } else { dest.to_owned() };
    let parent =
        if contents && is_dir && existing.is_none() { target.clone() } else { target.parent().unwrap_or(Path::new("/")).to_owned() };
    Ok((target, parent))
}

/// Absolute and cleaned, but a slash or a slash and a dot at the end stay: they say that it is a directory.
fn clean(path: &str) -> String {
    let mut cleaned = patterns::join(&["/", path]);
    if path.ends_with("/.") {
        if cleaned != "/" {
            cleaned.push('/');
        }
        cleaned.push('.');
    } else if path.ends_with('/') && cleaned != "/" {
        cleaned.push('/');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_as_a_directory_stays_one() {
        for (path, want) in [("a", "/a"), ("/a//b/", "/a/b/"), ("/a/.", "/a/."), ("/", "/"), ("/.", "/."), ("", "/"), ("../a/./", "/a/")] {
            assert_eq!(clean(path), want, "{path}");
        }
    }
}
