use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use fault::Fault;
use kv::Batch;
use snapshot::{MountSpec, Top, TreeId, View};
use task::Cancel;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::node::{Kind, Layer, State};
use crate::record::CELLS;
use crate::store::{Layers, Loaded};
use crate::{LayerId, Properties};

/// Who may use a cell beside its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Others that share, at the same time.
    Shared,
    /// Nobody; who comes meanwhile gets another cell of the same key.
    Private,
    /// Nobody; who comes meanwhile waits.
    Locked,
}

/// A mutable tree that stays between builds, in use: a cache mount, the directory that a client's files are received into.
///
/// Dropping it ends the use; the tree stays.
pub struct Cell {
    layer: Layer,
    tree: snapshot::Draft,
}

/// Which cells are in use, and by how many.
pub(crate) struct Guards {
    in_use: Mutex<HashMap<LayerId, Use>>,
    /// Counts the ends of uses.
    freed: watch::Sender<u64>,
}

struct Use {
    users: usize,
    exclusive: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self { in_use: Mutex::default(), freed: watch::Sender::new(0) }
    }
}

enum Tried {
    Cell(Box<Cell>),
    /// A new one has to be made, and what it begins with first.
    NeedsStart,
    Wait,
}

enum Found {
    Free(Layer),
    Nothing,
    /// All there are are used, and the caller wants to wait.
    Wait,
}

impl Layers {
    /// A cell with this key that began as a copy of this base, made if there is none that `sharing` allows. `base` must be realized.
    ///
    /// A copy, because the kernel does not let two mounts share the directory that takes their changes, which is what users of a shared cell do.
    pub async fn cell(
        &self,
        key: &str,
        base: Option<&Layer>,
        sharing: Sharing,
        properties: Properties,
        cancel: &Cancel,
    ) -> fault::Result<Cell> {
        let key = base.map_or_else(|| key.to_owned(), |base| format!("{key}:{}", base.id()));
        let mut freed = self.0.cells.freed.subscribe();
        let mut start = None;
        loop {
            freed.borrow_and_update();
            match self.try_cell(&key, sharing, &properties, base.is_none(), &mut start)? {
                Tried::Cell(cell) => return Ok(*cell),
                Tried::NeedsStart => {
                    let (home, base) = (self.clone(), base.cloned().expect("without a base nothing is needed"));
                    start = Some(task::blocking(move || Ok(home.trees().copied(&base.stack()?).map_err(Error::from)?)).await?);
                }
                Tried::Wait => {
                    let change = async { freed.changed().await.map_err(|_| Fault::internal("the cells outlive their users")) };
                    cancel.run(change).await?;
                }
            }
        }
    }

    /// `start` is what a new cell begins with; nothing, if `empty`.
    fn try_cell(
        &self,
        key: &str,
        sharing: Sharing,
        properties: &Properties,
        empty: bool,
        start: &mut Option<snapshot::Draft>,
    ) -> Result<Tried> {
        let mut in_use = self.0.cells.in_use.lock().expect("no holder of the lock panics");
        let layer = match (self.find(key, sharing, &in_use)?, start.take()) {
            (Found::Wait, unused) => {
                *start = unused;
                return Ok(Tried::Wait);
            }
            (Found::Free(layer), _) => layer,
            (Found::Nothing, None) if !empty => return Ok(Tried::NeedsStart),
            (Found::Nothing, start) => {
                let draft = start.map_or_else(|| self.trees().create(), Ok)?;
                let tree = self.trees().keep(draft)?;
                let state = State { tree: Some(tree.id()), ..State::default() };
                let kind = Kind::Cell { key: key.to_owned(), base: None };
                Layer::over(self.create(kind, properties.clone(), None, state))
            }
        };
        let id = layer.0.state().tree.ok_or(Error::Lost { id: layer.id() })?;
        let tree = self.trees().reopen(&id)?;
        let entry = in_use.entry(layer.id()).or_insert(Use { users: 0, exclusive: sharing != Sharing::Shared });
        entry.users += 1;
        Ok(Tried::Cell(Box::new(Cell { layer, tree })))
    }

    fn find(&self, key: &str, sharing: Sharing, in_use: &HashMap<LayerId, Use>) -> Result<Found> {
        let prefix = format!("{key}\0");
        let known = self.0.db.read()?.prefix(&CELLS, prefix.as_bytes())?;
        let ids: Vec<LayerId> = known.iter().filter_map(|(entry, ())| entry[prefix.len()..].parse().ok()).collect();
        let shared = |id: &&LayerId| in_use.get(id).is_some_and(|u| !u.exclusive);
        if sharing == Sharing::Shared
            && let Some(layer) = self.first(ids.iter().filter(shared))?
        {
            return Ok(Found::Free(layer));
        }
        match self.first(ids.iter().filter(|id| !in_use.contains_key(id)))? {
            Some(layer) => Ok(Found::Free(layer)),
            None if sharing == Sharing::Locked && ids.iter().any(|id| in_use.contains_key(id)) => Ok(Found::Wait),
            None => Ok(Found::Nothing),
        }
    }

    fn first<'a>(&self, ids: impl Iterator<Item = &'a LayerId>) -> Result<Option<Layer>> {
        for id in ids {
            let mut loaded = Loaded::default();
            let node = self.load(&mut self.live(), id, &mut loaded)?;
            if let Some(node) = node {
                return Ok(Some(Layer::over(node)));
            }
        }
        Ok(None)
    }

    /// Makes the next user of this key start empty. Cells in use stay with their users, and are pruned some time later.
    pub fn clear_cells(&self, key: &str, base: Option<&Layer>) -> Result<()> {
        let key = base.map_or_else(|| key.to_owned(), |base| format!("{key}:{}", base.id()));
        let _in_use = self.0.cells.in_use.lock().expect("no holder of the lock panics");
        let known = self.0.db.read()?.prefix(&CELLS, format!("{key}\0").as_bytes())?;
        let mut batch = Batch::new();
        for (entry, ()) in &known {
            batch.delete(&CELLS, entry.as_str());
        }
        self.0.db.submit(batch);
        Ok(())
    }
}

impl Cell {
    pub fn id(&self) -> LayerId {
        self.layer.id()
    }

    /// The directory with the cell's own files. Without a base that is all there is.
    pub fn path(&self) -> PathBuf {
        self.tree.fs()
    }

    /// How to mount the cell, on top of its base.
    pub fn mount_spec(&self) -> Result<MountSpec> {
        Ok(self.layer.0.home.trees().mount_spec(&self.base()?, Top::Draft(&self.tree))?)
    }

    /// The base and the cell as one, as they are now.
    pub fn view(&self) -> Result<View> {
        Ok(self.layer.0.home.trees().view_with(&self.base()?, &self.tree)?)
    }

    fn base(&self) -> Result<Vec<TreeId>> {
        match &self.layer.0.kind {
            Kind::Cell { base: Some(base), .. } => base.stack(),
            _ => Ok(Vec::new()),
        }
    }

    /// For reading and writing the files directly; see [`snapshot::Store::edit`] and [`snapshot::Store::view`].
    pub fn tree(&mut self) -> &mut snapshot::Draft {
        &mut self.tree
    }

    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.layer.meta_get(key)
    }

    pub fn meta_put(&self, key: &str, value: &[u8]) {
        self.layer.meta_put(key, value);
    }

    pub fn description(&self) -> String {
        self.layer.description()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let home = &self.layer.0.home;
        // What was written is not synced, and its size is another.
        home.doubt(&self.layer.0);
        home.0.account.queue([self.tree.id()]);
        let mut in_use = home.0.cells.in_use.lock().expect("no holder of the lock panics");
        if let Some(entry) = in_use.get_mut(&self.layer.id()) {
            entry.users -= 1;
            if entry.users == 0 {
                in_use.remove(&self.layer.id());
            }
        }
        drop(in_use);
        home.0.cells.freed.send_modify(|count| *count += 1);
    }
}
