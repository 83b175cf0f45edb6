//! What a layer itself has, apart from those below it.
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::node::Layer;
use crate::same::Item;

impl Layer {
    /// Paths of the layer's own diff, relative to the root; not those that it deletes. Fails if the layer is not realized.
    pub fn own_paths(&self) -> Result<Vec<PathBuf>> {
        let node = &self.0;
        let tree = node.state().tree.ok_or(Error::Lazy { id: node.id })?;
        let root = node.home.trees().files(&tree).map_err(Error::from)?;
        let mut paths = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(directory) = pending.pop() {
            for name in names(&root.join(&directory))? {
                let path = directory.join(name);
                let item = Item::at(&root.join(&path))?;
                if item.is_whiteout() {
                    continue;
                }
                if item.is_dir() {
                    pending.push(path.clone());
                }
                paths.push(path);
            }
        }
        Ok(paths)
    }
}

fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    entries.map(|entry| Ok(entry.map_err(Error::io("read", directory))?.file_name())).collect()
}
