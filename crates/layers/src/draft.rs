use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use snapshot::{Editor, MountSpec, Top, TreeId, View};

use crate::error::Result;
use crate::node::{Kind, Layer, State};
use crate::store::Layers;

/// What users see of a layer in `du`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub description: String,
    /// See [`Layer::record_type`]; empty is `regular`.
    pub record_type: String,
}

impl Properties {
    pub fn new(description: impl Into<String>) -> Self {
        Self { description: description.into(), record_type: String::new() }
    }

    pub fn of_type(self, record_type: impl Into<String>) -> Self {
        Self { record_type: record_type.into(), ..self }
    }
}

/// A layer that can still be written. Dropped uncommitted, nothing of it stays.
pub struct Draft {
    home: Layers,
    parent: Option<Layer>,
    tree: snapshot::Draft,
    stack: Vec<TreeId>,
    properties: Properties,
    /// Processes may have written to it through an overlay mount.
    mounted: AtomicBool,
    begun: Instant,
}

impl Layers {
    /// A new layer on top of `parent`, which must be realized.
    pub fn draft(&self, parent: Option<&Layer>, properties: Properties) -> Result<Draft> {
        let stack = parent.map_or(Ok(Vec::new()), |parent| crate::flatten::shallow(&parent.0))?;
        let tree = self.0.trees.create()?;
        Ok(Draft {
            home: self.clone(),
            parent: parent.cloned(),
            tree,
            stack,
            properties,
            mounted: AtomicBool::new(false),
            begun: Instant::now(),
        })
    }
}

impl Draft {
    pub fn parent(&self) -> Option<&Layer> {
        self.parent.as_ref()
    }

    /// The directory with the draft's own files, an overlay upper directory.
    pub fn own_files(&self) -> PathBuf {
        self.tree.fs()
    }

    /// Where what was written through the draft's mount is: [`Draft::own_files`], or without overlay all files that the mount shows.
    pub fn mounted_files(&self) -> PathBuf {
        self.tree.mounted()
    }

    /// Tells of files, by inode and path, that were hard-linked into [`Draft::own_files`] from `from`, a layer of one tree with the same paths.
    pub fn took_over<'a>(&mut self, from: &Layer, files: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<()> {
        match from.stack()?.as_slice() {
            [tree] => Ok(self.tree.took_over(tree, files)?),
            _ => Ok(()),
        }
    }

    /// Reads the parent and the draft as one, writes to the draft. No mount is involved.
    pub fn editor(&mut self) -> Result<Editor<'_>> {
        Ok(self.home.0.trees.edit(&self.stack, &mut self.tree)?)
    }

    /// The parent and the draft as one, as they are now.
    pub fn view(&self) -> Result<View> {
        Ok(self.home.0.trees.view_with(&self.stack, &self.tree)?)
    }

    /// How to mount the draft on top of its parent.
    pub fn mount_spec(&self) -> Result<MountSpec> {
        self.mounted.store(true, Ordering::Relaxed);
        Ok(self.home.0.trees.mount_spec(&self.stack, Top::Draft(&self.tree))?)
    }

    pub fn set_description(&mut self, description: impl Into<String>) {
        self.properties.description = description.into();
    }

    /// Makes it a layer. Waits for no disk: [`Layers::flush`] and [`Layers::sync`] do.
    pub fn commit(self) -> Result<Layer> {
        let cost = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut state = State { cost, ..State::default() };
        if self.mounted.into_inner() {
            let hides = crate::opaque::tidy(&self.home, &self.tree, &self.stack)?;
            let shows = crate::redundant::remove(&self.home, &self.tree, &self.stack)?;
            state.opaque = hides || shows;
        }
        state.tree = Some(self.home.0.trees.commit(self.tree)?);
        let kind = Kind::Layer { parent: self.parent.as_ref().map(|p| p.0.clone()) };
        Ok(Layer::over(self.home.create(kind, self.properties, None, state)))
    }
}
