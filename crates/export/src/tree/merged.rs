//! Several trees as one.
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use fault::{Fault, Result};

use super::{Entry, Shared, Tree};

/// Trees that share directories but no other paths. Entries are read once, when the merge is made.
pub struct Merged {
    entries: BTreeMap<PathBuf, (Entry, usize)>,
    trees: Vec<Shared>,
}

impl Merged {
    /// A directory that several trees have is the last one's. Each tree comes with the name that errors call it by.
    pub fn new(named: Vec<(String, Shared)>) -> Result<Self> {
        let mut entries: BTreeMap<PathBuf, (Entry, usize)> = BTreeMap::new();
        for (number, (name, tree)) in named.iter().enumerate() {
            tree.walk(&mut |entry| {
                let known = entries.get(&entry.path).filter(|(known, _)| !(known.is_dir() && entry.is_dir()));
                if let Some((_, other)) = known {
                    return Err(overwritten(&entry.path, &named[*other].0, name));
                }
                entries.insert(entry.path.clone(), (entry, number));
                Ok(())
            })?;
        }
        Ok(Self { entries, trees: named.into_iter().map(|(_, tree)| tree).collect() })
    }
}

fn overwritten(path: &Path, first: &str, second: &str) -> Fault {
    Fault::invalid(format!("cannot overwrite {} from {first} with {second} when split option is disabled", path.display()))
}

impl Tree for Merged {
    fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.entries.values().try_for_each(|(entry, _)| visit(entry.clone()))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        match self.entries.get(path) {
            Some((_, number)) => self.trees[*number].open(path),
            None => Err(Fault::new(fault::Kind::NotFound, format!("{}: no such file", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{Listed, content, paths};

    #[test]
    fn directories_merge_and_files_must_not_meet() {
        let one = ("linux/amd64".to_owned(), Listed::default().dir("a").file("a/x", b"1").file("a.c", b"3").shared());
        let two = ("linux/arm64".to_owned(), Listed::default().dir("a").file("a/y", b"2").shared());
        let tree = Merged::new(vec![one.clone(), two]).unwrap();
        assert_eq!(paths(&tree), ["a", "a/x", "a/y", "a.c"]);
        assert_eq!(content(&tree, "a/y"), "2");
        let clash = ("linux/s390x".to_owned(), Listed::default().dir("a").file("a/x", b"").shared());
        let failure = Merged::new(vec![one, clash]).err().unwrap();
        assert_eq!(failure.to_string(), "cannot overwrite a/x from linux/amd64 with linux/s390x when split option is disabled");
    }
}
