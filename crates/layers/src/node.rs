use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use oci::{Descriptor, Digest, Timestamp};
use snapshot::TreeId;

use crate::error::{Error, Result};
use crate::image::BlobSource;
use crate::record::{KindRecord, Record};
use crate::store::Layers;
use crate::{LayerId, Properties};

/// A layer in memory. There is at most one for each id; it holds its parents.
pub(crate) struct Node {
    pub id: LayerId,
    pub home: Layers,
    pub kind: Kind,
    pub created: Timestamp,
    pub record_type: String,
    state: Mutex<State>,
    /// Handles. Zero does not mean unused: a child in use uses its parents.
    users: AtomicUsize,
    /// Those of them whose end is a use that counts.
    takers: AtomicUsize,
    /// This layer and all below it were found to be realized.
    whole: AtomicBool,
}

pub(crate) enum Kind {
    Layer { parent: Option<Arc<Node>> },
    Merge { inputs: Vec<Arc<Node>> },
    Diff { lower: Option<Arc<Node>>, upper: Option<Arc<Node>>, computed: bool },
    Cell { key: String, base: Option<Arc<Node>> },
}

/// What changes in the life of a layer.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub description: String,
    pub tree: Option<TreeId>,
    /// The tree is only right in its place: it hides whole directories, or shows some that it does not change.
    pub opaque: bool,
    pub explicit: Option<TreeId>,
    pub flat: Option<Flat>,
    pub blobs: Vec<Descriptor>,
    pub diff_id: Option<Digest>,
    pub chain_id: Option<Digest>,
    pub blob_chain_id: Option<Digest>,
    /// How long it took to make, in milliseconds.
    pub cost: u64,
    /// Where the blob comes from. Known as long as someone keeps the layer.
    pub source: Option<Arc<dyn BlobSource>>,
}

/// A tree that stands for a layer and some of those below it.
#[derive(Clone)]
pub(crate) struct Flat {
    pub tree: TreeId,
    /// The first that it does not stand for; `None` if nothing is left.
    pub over: Option<Arc<Node>>,
    /// How many layers it stands for.
    pub count: usize,
}

impl State {
    pub fn trees(&self) -> impl Iterator<Item = TreeId> + use<> {
        [self.tree, self.explicit, self.flat.as_ref().map(|flat| flat.tree)].into_iter().flatten()
    }
}

impl Node {
    pub fn new(id: LayerId, home: Layers, kind: Kind, properties: Properties, created: Timestamp, state: State) -> Self {
        let state = State { description: properties.description, ..state };
        Self {
            id,
            home,
            kind,
            created,
            record_type: properties.record_type,
            state: Mutex::new(state),
            users: AtomicUsize::new(0),
            takers: AtomicUsize::new(0),
            whole: AtomicBool::new(false),
        }
    }

    /// Whether the trees of this layer and of all below it are here, as far as that can be told without looking at any layer twice in its
    /// life. What is here stays as long as the node does.
    pub fn is_whole(self: &Arc<Self>) -> bool {
        let mut unknown = Vec::new();
        let mut node = self;
        while !node.whole.load(Ordering::Acquire) {
            let Kind::Layer { parent } = &node.kind else { return false };
            if node.state().tree.is_none() {
                return false;
            }
            unknown.push(node);
            match parent {
                Some(parent) => node = parent,
                None => break,
            }
        }
        unknown.into_iter().for_each(|node| node.whole.store(true, Ordering::Release));
        true
    }

    /// Takes note that [`Layer::realize`] did all there is to do for this layer.
    pub fn set_whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of a layer's state panics")
    }

    pub fn parents(&self) -> Vec<&Arc<Node>> {
        match &self.kind {
            Kind::Layer { parent } | Kind::Cell { base: parent, .. } => parent.iter().collect(),
            Kind::Merge { inputs } => inputs.iter().collect(),
            Kind::Diff { lower, upper, .. } => lower.iter().chain(upper).collect(),
        }
    }

    pub fn users(&self) -> usize {
        self.users.load(Ordering::Acquire)
    }

    /// The record that the database should have.
    pub fn record(&self, state: &State) -> Record {
        let id = |node: &Option<Arc<Node>>| node.as_ref().map(|n| n.id);
        let kind = match &self.kind {
            Kind::Layer { parent } => KindRecord::Layer { parent: id(parent) },
            Kind::Merge { inputs } => KindRecord::Merge { inputs: inputs.iter().map(|n| n.id).collect() },
            Kind::Diff { lower, upper, computed } => KindRecord::Diff { lower: id(lower), upper: id(upper), computed: *computed },
            Kind::Cell { key, base } => KindRecord::Cell { key: key.clone(), base: id(base) },
        };
        let state = state.clone();
        Record {
            kind,
            created: self.created,
            description: state.description,
            record_type: self.record_type.clone(),
            tree: state.tree,
            opaque: state.opaque,
            explicit: state.explicit,
            flat_over: state.flat.as_ref().and_then(|flat| id(&flat.over)),
            flat_count: state.flat.as_ref().map_or(0, |flat| flat.count),
            flat: state.flat.map(|flat| flat.tree),
            blobs: state.blobs,
            diff_id: state.diff_id,
            chain_id: state.chain_id,
            blob_chain_id: state.blob_chain_id,
            cost: state.cost,
        }
    }

    /// The layers that have a diff of their own, lowest first. What an image of this layer consists of; an entry may come twice, through
    /// merges of layers with a common base.
    pub fn chain(self: &Arc<Self>) -> Vec<Element> {
        let mut chain = Vec::new();
        // A stack instead of recursion: chains may be thousands of layers long.
        let mut pending = vec![Step { node: self.clone(), explicit: false }];
        while let Some(step) = pending.pop() {
            let below = |node: &Arc<Node>, explicit| Step { node: node.clone(), explicit };
            match &step.node.kind {
                Kind::Cell { .. } => {}
                Kind::Layer { parent } => {
                    chain.push(Element { node: step.node.clone(), explicit: step.explicit });
                    pending.extend(parent.iter().map(|p| below(p, step.explicit)));
                }
                // Built from the top down: the last input is on top, so it is walked first.
                Kind::Merge { inputs } => {
                    let inputs = inputs.iter().enumerate();
                    pending.extend(inputs.map(|(n, input)| below(input, step.explicit || n > 0)));
                }
                Kind::Diff { computed: true, .. } => chain.push(Element { node: step.node.clone(), explicit: step.explicit }),
                Kind::Diff { lower, upper, computed: false } => {
                    let kept = upper.as_ref().map_or(Vec::new(), |u| u.chain());
                    let dropped = lower.as_ref().map_or(0, |l| l.chain().len());
                    let reused = kept.into_iter().skip(dropped).rev();
                    // They no longer lie on what they were made on.
                    chain.extend(reused.map(|e| Element { explicit: e.explicit || step.explicit || dropped > 0, ..e }));
                }
            }
        }
        chain.reverse();
        chain
    }

    /// The trees to stack, lowest first.
    pub fn stack(self: &Arc<Self>) -> Result<Vec<TreeId>> {
        let (base, runs) = self.runs()?;
        let mut trees = base.as_ref().map_or(Ok(Vec::new()), Self::own_stack)?;
        trees.extend(runs.into_iter().rev().map(|run| run.tree));
        Ok(trees)
    }

    /// The layers that were made on each other up to this one, as they are to be stacked, topmost first, and what else they were made on.
    pub fn runs(self: &Arc<Self>) -> Result<(Option<Arc<Self>>, Vec<Flat>)> {
        let mut runs = Vec::new();
        let mut node = self.clone();
        loop {
            let flat = node.state().flat.clone();
            let run = match (flat, &node.kind) {
                (Some(flat), _) => flat,
                (None, Kind::Layer { parent }) => {
                    let tree = node.state().tree.ok_or(Error::Lazy { id: node.id })?;
                    Flat { tree, over: parent.clone(), count: 1 }
                }
                (None, _) => return Ok((Some(node), runs)),
            };
            let over = run.over.clone();
            runs.push(run);
            match over {
                Some(over) => node = over,
                None => return Ok((None, runs)),
            }
        }
    }

    /// The trees of all that this consists of, lowest first, none of them squashed.
    pub fn own_stack(self: &Arc<Self>) -> Result<Vec<TreeId>> {
        self.chain().iter().map(Element::tree).collect()
    }
}

struct Step {
    node: Arc<Node>,
    explicit: bool,
}

/// A member of a chain.
#[derive(Clone)]
pub(crate) struct Element {
    pub node: Arc<Node>,
    /// It lies on layers that it was not made on, so it must not hide whole directories.
    pub explicit: bool,
}

impl Element {
    fn tree(&self) -> Result<TreeId> {
        let state = self.node.state();
        let tree = if self.explicit && state.opaque { state.explicit } else { state.tree };
        tree.ok_or(Error::Lazy { id: self.node.id })
    }
}

/// Chains are thousands of layers long, so they are taken apart without recursion.
impl Drop for Node {
    fn drop(&mut self) {
        self.home.forget(&self.id);
        let mut pending = vec![self.kind.take()];
        while let Some(kind) = pending.pop() {
            let below: Vec<Arc<Node>> = match kind {
                Kind::Layer { parent } | Kind::Cell { base: parent, .. } => parent.into_iter().collect(),
                Kind::Merge { inputs } => inputs,
                Kind::Diff { lower, upper, .. } => lower.into_iter().chain(upper).collect(),
            };
            // Those that nobody else holds end here, with nothing below them any more.
            pending.extend(below.into_iter().filter_map(Arc::into_inner).map(|mut node| node.kind.take()));
        }
    }
}

impl Kind {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Layer { parent: None })
    }
}

/// A handle on a layer; cheap to clone. While one lives, neither the layer nor anything below it is pruned.
pub struct Layer(pub(crate) Arc<Node>, Purpose);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Use,
    /// Seen through another layer.
    Look,
}

impl Layer {
    pub(crate) fn over(node: Arc<Node>) -> Self {
        Self::with(node, Purpose::Use)
    }

    /// A handle that does not count as a use.
    pub(crate) fn glance(node: Arc<Node>) -> Self {
        Self::with(node, Purpose::Look)
    }

    fn with(node: Arc<Node>, purpose: Purpose) -> Self {
        node.users.fetch_add(1, Ordering::AcqRel);
        if purpose == Purpose::Use {
            node.takers.fetch_add(1, Ordering::AcqRel);
        }
        Self(node, purpose)
    }
}

impl Clone for Layer {
    fn clone(&self) -> Self {
        Self::with(self.0.clone(), self.1)
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if self.1 == Purpose::Use && self.0.takers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.home.note_use(&self.0.id);
        }
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({})", self.0.id)
    }
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Layer {}
