//! Trees side by side, each in a directory of its own.
use std::io::Read;
use std::path::Path;

use fault::{Fault, Kind, Result};

use super::{Entry, Shared, Tree, join_clean};

pub struct Directory {
    pub name: String,
    /// Unix nanoseconds.
    pub mtime: i64,
    pub tree: Shared,
}

impl Directory {
    /// Named after a platform, with `_` for `/`.
    pub fn of_platform(id: &str, epoch: Option<i64>, tree: Shared) -> Self {
        Self { name: id.replace('/', "_"), mtime: epoch.map_or(0, |seconds| seconds.saturating_mul(1_000_000_000)), tree }
    }
}

pub struct Split(Vec<Directory>);

impl Split {
    pub fn new(mut directories: Vec<Directory>) -> Result<Self> {
        directories.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = directories.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Fault::invalid(format!("duplicate path {}", pair[0].name)));
        }
        Ok(Self(directories))
    }
}

impl Tree for Split {
    fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        for directory in &self.0 {
            let name = &directory.name;
            visit(Entry::directory(name, 0o755, directory.mtime))?;
            directory.tree.walk(&mut |mut entry| {
                if !entry.link.is_empty() {
                    if !entry.is_symlink() {
                        entry.link = join_clean(name, &entry.link);
                    } else if Path::new(&entry.link).is_absolute() {
                        entry.link = join_clean(&format!("/{name}"), &entry.link);
                    }
                }
                entry.path = Path::new(name).join(entry.path);
                visit(entry)
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        let inside = self.0.iter().find_map(|d| Some((d, path.strip_prefix(&d.name).ok()?)));
        let (directory, rest) = inside.ok_or_else(|| Fault::new(Kind::NotFound, format!("{}: no such file", path.display())))?;
        directory.tree.open(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::SYMLINK;
    use crate::tree::tests::{Listed, content, paths};

    #[test]
    fn links_keep_pointing_into_their_directory() {
        let tree = Listed::default().file("a", b"1").link("b", 0o100644, "a").link("c", SYMLINK, "/etc/x").link("d", SYMLINK, "../y");
        let arm = Directory::of_platform("linux/arm64", Some(2), tree.shared());
        let amd = Directory::of_platform("linux/amd64", None, Listed::default().file("a", b"2").shared());
        let split = Split::new(vec![arm, amd]).unwrap();
        let mut links = Vec::new();
        split
            .walk(&mut |entry| {
                links.push((entry.path.display().to_string(), entry.link.into_string().unwrap(), entry.mtime));
                Ok(())
            })
            .unwrap();
        let want = [
            ("linux_amd64", "", 0),
            ("linux_amd64/a", "", 1_500_000_000),
            ("linux_arm64", "", 2_000_000_000),
            ("linux_arm64/a", "", 1_500_000_000),
            ("linux_arm64/b", "linux_arm64/a", 0),
            ("linux_arm64/c", "/linux_arm64/etc/x", 0),
            ("linux_arm64/d", "../y", 0),
        ];
        assert_eq!(links, want.map(|(path, link, mtime)| (path.to_owned(), link.to_owned(), mtime)));
        assert_eq!((content(&split, "linux_amd64/a"), paths(&split).len()), ("2".into(), 7));
        let twice = ["a/b", "a_b"].map(|id| Directory::of_platform(id, None, Listed::default().shared()));
        assert_eq!(Split::new(twice.into()).err().unwrap().to_string(), "duplicate path a_b");
    }
}
