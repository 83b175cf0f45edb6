use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use content::Watermark;
use kv::{Batch, Db, Json};
use oci::{Digest, Timestamp};
use snapshot::TreeId;
use tokio::sync::Semaphore;

use crate::account::Account;
use crate::budget::Budget;
use crate::ceiling::Ceiling;
use crate::error::{Error, Result};
use crate::figures::Deletions;
use crate::flight::Flights;
use crate::node::{Flat, Kind, Layer, Node, State};
use crate::record::{BLOB_CHAINS, CELLS, CHAINS, CHILDREN, KindRecord, META, RECORDS, Record, TREES, USES, Uses};
use crate::{LayerId, Properties};

/// All layers. Clones are the same.
#[derive(Clone)]
pub struct Layers(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub db: Db,
    pub content: content::Store,
    pub trees: snapshot::Store,
    pub watermark: Watermark,
    /// Layers in memory. A record is deleted only under this lock, having seen that nothing here keeps it.
    live: Mutex<HashMap<LayerId, Weak<Node>>>,
    /// Uses not written to the database yet.
    uses: Mutex<BTreeMap<LayerId, Uses>>,
    pub flights: Flights<()>,
    pub trees_made: Flights<crate::realize::Realized>,
    /// Downloads, one at a time for each blob.
    pub gates: Mutex<HashMap<Digest, Weak<Semaphore>>>,
    /// Vertices shown as running, and by how many layers.
    pub intervals: Mutex<HashMap<Digest, usize>>,
    pub budget: Budget,
    pub cells: crate::cell::Guards,
    pub pruning: Mutex<()>,
    pub account: Account,
    pub ceiling: Ceiling,
    pub deletions: Deletions,
    pub due: crate::maintain::Due,
    pub upkeep: crate::maintain::Upkeep,
    pub fresh: crate::dedup::Fresh,
    /// Trees with lower ids were there before this process.
    pub opened: TreeId,
}

impl Layers {
    /// Opens the layers that the database knows. Drops what a power cut may have torn; looks at no other layer.
    pub fn open(db: Db, content: content::Store, trees: snapshot::Store) -> Result<Self> {
        let boot_id = content::boot_id().map_err(Error::io("read", Path::new("/proc/sys/kernel/random/boot_id")))?;
        Self::open_as_of_boot(db, content, trees, &boot_id)
    }

    /// [`Layers::open`] for tests of what happens when the machine was restarted.
    pub fn open_as_of_boot(db: Db, content: content::Store, trees: snapshot::Store, boot_id: &str) -> Result<Self> {
        let (watermark, doubtful) = Watermark::open(&db, "layers", boot_id)?;
        let opened = trees.create()?.id();
        let layers = Self(Arc::new(Shared {
            opened,
            db,
            content,
            trees,
            watermark,
            live: Mutex::default(),
            uses: Mutex::default(),
            flights: Flights::default(),
            trees_made: Flights::default(),
            gates: Mutex::default(),
            intervals: Mutex::default(),
            budget: Budget::for_this_machine(),
            cells: crate::cell::Guards::default(),
            pruning: Mutex::default(),
            account: Account::default(),
            ceiling: Ceiling::default(),
            deletions: Deletions::default(),
            due: crate::maintain::Due::default(),
            upkeep: crate::maintain::Upkeep::default(),
            fresh: crate::dedup::Fresh::default(),
        }));
        layers.drop_doubtful(&doubtful)?;
        Ok(layers)
    }

    /// Records whose trees were not synced when the machine went down. What lies on them was made later and is among them, too.
    fn drop_doubtful(&self, names: &[Vec<u8>]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        self.0.watermark.settle(&mut batch)?;
        for name in names {
            let Some(id) = std::str::from_utf8(name).ok().and_then(|text| text.parse::<LayerId>().ok()) else { continue };
            if let Some(Json(record)) = self.0.db.get(&RECORDS, id.as_str())? {
                tracing::warn!(layer = %id, "the machine went down before this layer was synced; dropping it");
                for tree in self.erase(&mut batch, &id, &record)? {
                    self.remove_tree(&tree);
                }
            }
        }
        self.0.db.submit(batch);
        Ok(())
    }

    /// A random id of a layer's form, which no layer has.
    pub fn new_id(&self) -> LayerId {
        LayerId::random()
    }

    /// A layer by the id it had in an earlier life of the process, or in this one. `None` if it, or anything below it, is gone.
    ///
    /// The layer may be lazy with nobody left who knows where its blobs are; [`Layer::missing`] tells.
    pub fn get(&self, id: &LayerId) -> Result<Option<Layer>> {
        let mut loaded = Loaded::default();
        let node = self.load(&mut self.live(), id, &mut loaded);
        // `loaded` is dropped after the lock: nodes take it when they go.
        Ok(node?.map(Layer::over))
    }

    /// The node of `id` with everything below it, made bottom up without recursion.
    pub(crate) fn load(&self, live: &mut Live<'_>, id: &LayerId, loaded: &mut Loaded) -> Result<Option<Arc<Node>>> {
        let mut pending = vec![*id];
        let mut open = HashSet::new();
        while let Some(&next) = pending.last() {
            if loaded.0.contains_key(&next) {
                pending.pop();
                continue;
            }
            if let Some(node) = live.get(&next).and_then(Weak::upgrade) {
                loaded.0.insert(next, Some(node));
                continue;
            }
            let Some(Json(record)) = self.0.db.get(&RECORDS, next.as_str())? else {
                loaded.0.insert(next, None);
                continue;
            };
            let parents = record.kind.parents();
            let unknown: Vec<LayerId> = parents.iter().filter(|p| !loaded.0.contains_key(p)).copied().collect();
            if unknown.is_empty() {
                let node = self.revive(next, record, loaded)?;
                if let Some(node) = &node {
                    live.insert(next, Arc::downgrade(node));
                }
                loaded.0.insert(next, node);
            } else if open.insert(next) {
                pending.extend(unknown);
            } else {
                tracing::warn!(layer = %next, "a layer is said to be made of itself; dropping its record");
                let mut batch = Batch::new();
                self.erase(&mut batch, &next, &record)?;
                self.0.db.submit(batch);
                loaded.0.insert(next, None);
            }
        }
        Ok(loaded.0.get(id).cloned().flatten())
    }

    /// Makes a node of a record whose parents are loaded. `None`, and the record goes, if it cannot be used any more.
    fn revive(&self, id: LayerId, mut record: Record, loaded: &Loaded) -> Result<Option<Arc<Node>>> {
        let kind = self.kind_of(&record.kind, loaded);
        let tree_lost = record.tree.is_some_and(|tree| !self.0.trees.contains(&tree));
        if tree_lost && !record.blobs.is_empty() && matches!(record.kind, KindRecord::Layer { .. }) {
            tracing::warn!(layer = %id, "the files of a layer are gone; they will be unpacked again");
            record.tree = None;
        }
        let (Some(kind), false) = (kind, record.tree.is_some() && tree_lost) else {
            tracing::warn!(layer = %id, "a layer cannot be used any more; dropping its record");
            let mut batch = Batch::new();
            self.erase(&mut batch, &id, &record)?;
            self.0.db.submit(batch);
            return Ok(None);
        };
        let here = |tree: &TreeId| self.0.trees.contains(tree);
        let flat = record.flat.filter(here).and_then(|tree| {
            let over = record.flat_over.map(|over| below(&kind, &over));
            // A flat tree whose place is not known is of no use.
            (!matches!(over, Some(None))).then(|| Flat { tree, over: over.flatten(), count: record.flat_count.max(1) })
        });
        let state = State {
            description: String::new(),
            tree: record.tree,
            opaque: record.opaque,
            explicit: record.explicit.filter(here),
            flat,
            blobs: record.blobs,
            diff_id: record.diff_id,
            chain_id: record.chain_id,
            blob_chain_id: record.blob_chain_id,
            cost: record.cost,
            source: None,
        };
        let properties = Properties { description: record.description, record_type: record.record_type };
        Ok(Some(Arc::new(Node::new(id, self.clone(), kind, properties, record.created, state))))
    }

    fn kind_of(&self, record: &KindRecord, loaded: &Loaded) -> Option<Kind> {
        let one = |id: &LayerId| loaded.0.get(id).cloned().flatten();
        // The outer option says whether the record can be used, the inner one is the record's own.
        let optional = |id: &Option<LayerId>| match id {
            None => Some(None),
            Some(id) => one(id).map(Some),
        };
        Some(match record {
            KindRecord::Layer { parent } => Kind::Layer { parent: optional(parent)? },
            KindRecord::Merge { inputs } => Kind::Merge { inputs: inputs.iter().map(one).collect::<Option<_>>()? },
            KindRecord::Diff { lower, upper, computed } => {
                Kind::Diff { lower: optional(lower)?, upper: optional(upper)?, computed: *computed }
            }
            KindRecord::Cell { key, base } => Kind::Cell { key: key.clone(), base: optional(base)? },
        })
    }

    /// Records a new layer. Returns its node, which is live from now on.
    pub(crate) fn create(&self, kind: Kind, properties: Properties, created: Option<Timestamp>, state: State) -> Arc<Node> {
        let created = created.unwrap_or_else(|| SystemTime::now().into());
        let node = Arc::new(Node::new(LayerId::random(), self.clone(), kind, properties, created, state));
        let mut batch = Batch::new();
        // Only here: a cell that lost its key must not get it back with a later change.
        if let Kind::Cell { key, .. } = &node.kind {
            batch.put(&CELLS, format!("{key}\0{}", node.id).as_str(), &());
        }
        for parent in node.parents() {
            batch.put(&CHILDREN, pair(&parent.id, &node.id).as_str(), &());
        }
        self.live().insert(node.id, Arc::downgrade(&node));
        self.write(&mut batch, &node, &node.state());
        if node.state().tree.is_some() {
            self.0.watermark.note(&mut batch, node.id.as_str().as_bytes());
        }
        self.0.db.submit(batch);
        self.0.account.queue(node.state().trees());
        self.0.upkeep.is_needed();
        node
    }

    /// Adds the node's record and its index entries to the batch.
    pub(crate) fn write(&self, batch: &mut Batch, node: &Node, state: &State) {
        let id = &node.id;
        batch.put(&RECORDS, id.as_str(), &Json(node.record(state)));
        for tree in state.trees() {
            batch.put(&TREES, pair(&tree, id).as_str(), &());
        }
        for blob in &state.blobs {
            self.0.content.pin(batch, &blob.digest, &owner(id));
        }
        if let Some(chain) = &state.chain_id {
            batch.put(&CHAINS, pair(chain, id).as_str(), &());
        }
        if let Some(chain) = &state.blob_chain_id {
            batch.put(&BLOB_CHAINS, chain.as_str(), &Json(*id));
        }
    }

    /// Changes a node's state and its record.
    pub(crate) fn change<T>(&self, node: &Node, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = node.state();
        let before: Vec<TreeId> = state.trees().collect();
        let outcome = change(&mut state);
        let mut batch = Batch::new();
        self.write(&mut batch, node, &state);
        if before.iter().copied().ne(state.trees()) {
            self.0.watermark.note(&mut batch, node.id.as_str().as_bytes());
            self.0.account.queue(state.trees().filter(|tree| !before.contains(tree)));
        }
        // Submitted under the lock of the state, so that records follow each other in the order of the changes.
        self.0.db.submit(batch);
        self.0.upkeep.is_needed();
        outcome
    }

    /// Notes that files of the node changed in place and are not synced.
    pub(crate) fn doubt(&self, node: &Node) {
        let mut batch = Batch::new();
        self.0.watermark.note(&mut batch, node.id.as_str().as_bytes());
        self.0.db.submit(batch);
        self.0.upkeep.is_needed();
    }

    /// Adds the removal of a record and all that hangs on it to the batch. Returns the trees that belong to nobody then.
    pub(crate) fn erase(&self, batch: &mut Batch, id: &LayerId, record: &Record) -> Result<Vec<TreeId>> {
        let read = self.0.db.read()?;
        batch.delete(&RECORDS, id.as_str()).delete(&USES, id.as_str());
        for parent in record.kind.parents() {
            batch.delete(&CHILDREN, pair(&parent, id).as_str());
        }
        for (key, _) in read.prefix(&META, meta_key(id, "").as_slice())? {
            batch.delete(&META, key.as_slice());
        }
        for blob in &record.blobs {
            self.0.content.unpin(batch, &blob.digest, &owner(id));
        }
        if let Some(chain) = &record.chain_id {
            batch.delete(&CHAINS, pair(chain, id).as_str());
        }
        if let Some(chain) = &record.blob_chain_id
            && read.get(&BLOB_CHAINS, chain.as_str())? == Some(Json(*id))
        {
            batch.delete(&BLOB_CHAINS, chain.as_str());
        }
        if let KindRecord::Cell { key, .. } = &record.kind {
            batch.delete(&CELLS, format!("{key}\0{id}").as_str());
        }
        let mut freed = Vec::new();
        for tree in record.trees() {
            batch.delete(&TREES, pair(tree, id).as_str());
            let owners = read.prefix(&TREES, format!("{tree}/").as_bytes())?;
            if owners.iter().all(|(key, ())| *key == pair(tree, id)) {
                self.write_off(batch, tree)?;
                freed.push(*tree);
            }
        }
        Ok(freed)
    }

    pub(crate) fn remove_tree(&self, tree: &TreeId) {
        if self.0.trees.contains(tree)
            && let Err(error) = self.0.trees.remove(tree)
        {
            tracing::warn!(%tree, %error, "a tree without a layer stays until the next start");
        }
        self.0.upkeep.is_needed();
    }

    pub(crate) fn live(&self) -> Live<'_> {
        self.0.live.lock().expect("no holder of the lock panics")
    }

    /// Called by a node that goes.
    pub(crate) fn forget(&self, id: &LayerId) {
        let mut live = self.live();
        if live.get(id).is_some_and(|node| node.strong_count() == 0) {
            live.remove(id);
        }
    }

    /// Called when the last handle of a layer goes: that was a use.
    pub(crate) fn note_use(&self, id: &LayerId) {
        let mut uses = self.0.uses.lock().expect("no holder of the lock panics");
        let entry = uses.entry(*id).or_default();
        entry.count += 1;
        entry.last = Some(SystemTime::now().into());
        drop(uses);
        self.0.upkeep.is_needed();
    }

    /// Writes the uses that are only in memory to the database.
    pub(crate) fn write_uses(&self) -> Result<()> {
        self.0.write_uses()
    }

    pub fn content(&self) -> &content::Store {
        &self.0.content
    }

    pub fn trees(&self) -> &snapshot::Store {
        &self.0.trees
    }

    /// Waits until every layer made before this call survives `kill -9`. What survives a power cut is up to [`Layers::sync`].
    pub async fn flush(&self) -> Result<()> {
        self.0.upkeep.is_needed();
        Ok(self.0.db.flush().await?)
    }

    /// Waits until every layer and blob made before this call survives a power cut.
    pub async fn sync(&self) -> fault::Result<()> {
        let home = self.clone();
        let files = move || {
            home.0.content.sync()?;
            Ok(home.0.watermark.advance(|| Ok::<_, Error>(home.0.trees.sync()?))?)
        };
        task::blocking(files).await?;
        Ok(self.0.db.flush().await?)
    }
}

/// The layer called `id` among those that one of this kind was made on.
fn below(kind: &Kind, id: &LayerId) -> Option<Arc<Node>> {
    let mut kind = kind;
    while let Kind::Layer { parent: Some(parent) } = kind {
        if parent.id == *id {
            return Some(parent.clone());
        }
        kind = &parent.kind;
    }
    None
}

impl Shared {
    fn write_uses(&self) -> Result<()> {
        let new = std::mem::take(&mut *self.uses.lock().expect("no holder of the lock panics"));
        if new.is_empty() {
            return Ok(());
        }
        self.db.update(|tx| {
            for (id, uses) in new {
                // A record that was erased meanwhile must not get its uses back.
                if tx.get(&RECORDS, id.as_str())?.is_none() {
                    continue;
                }
                let before = tx.get(&USES, id.as_str())?.map_or(Uses::default(), |Json(uses)| uses);
                let sum = Uses { count: before.count + uses.count, last: uses.last.max(before.last) };
                tx.put(&USES, id.as_str(), &Json(sum));
            }
            Ok(())
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = self.write_uses() {
            tracing::warn!(%error, "the last uses of layers are not recorded");
        }
    }
}

pub(crate) type Live<'a> = MutexGuard<'a, HashMap<LayerId, Weak<Node>>>;

/// Nodes found during a load. Must outlive the lock of the live ones.
#[derive(Default)]
pub(crate) struct Loaded(HashMap<LayerId, Option<Arc<Node>>>);

/// As whom a layer pins its blobs.
fn owner(id: &LayerId) -> String {
    format!("layer/{id}")
}

/// A key of two ids.
pub(crate) fn pair(first: &impl std::fmt::Display, second: &impl std::fmt::Display) -> String {
    format!("{first}/{second}")
}

pub(crate) fn meta_key(id: &LayerId, key: &str) -> Vec<u8> {
    [id.as_str().as_bytes(), b"\0", key.as_bytes()].concat()
}
