//! A tree with a few more files at its top.
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fault::Result;

use super::{Entry, Shared, Tree};

pub struct WithFiles {
    tree: Shared,
    files: BTreeMap<PathBuf, (Entry, Bytes)>,
}

impl WithFiles {
    /// The files replace what the tree has at their paths.
    pub fn new(tree: Shared, files: impl IntoIterator<Item = (Entry, Bytes)>) -> Self {
        Self { tree, files: files.into_iter().map(|(entry, data)| (entry.path.clone(), (entry, data))).collect() }
    }
}

impl Tree for WithFiles {
    fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut files = self.files.values().map(|(entry, _)| entry).peekable();
        self.tree.walk(&mut |entry| {
            // Paths compare part by part, which is the order of the walk.
            while let Some(file) = files.next_if(|file| file.path < entry.path) {
                visit(file.clone())?;
            }
            match files.next_if(|file| file.path == entry.path) {
                Some(file) => visit(file.clone()),
                None => visit(entry),
            }
        })?;
        files.try_for_each(|file| visit(file.clone()))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        match self.files.get(path) {
            Some((_, data)) => Ok(Box::new(Cursor::new(data.clone()))),
            None => self.tree.open(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{Listed, content, paths};

    #[test]
    fn files_take_their_place_in_the_order() {
        let tree = Listed::default().dir("a").file("a/z", b"1").file("a.b", b"2").file("x", b"3").shared();
        let file = |path: &str, data: &'static [u8]| (Entry::file(path, 0o600, 0, data.len() as u64), Bytes::from_static(data));
        let tree = WithFiles::new(tree, [file("a-b", b"4"), file("x", b"5"), file("z", b"6")]);
        assert_eq!(paths(&tree), ["a", "a/z", "a-b", "a.b", "x", "z"]);
        assert_eq!((content(&tree, "x"), content(&tree, "a.b")), ("5".into(), "2".into()));
    }
}
