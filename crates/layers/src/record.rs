//! What the database holds about layers. Layout: `docs/formats/layers.md`.
use kv::{Json, Table};
use oci::{Descriptor, Digest, Timestamp};
use serde::{Deserialize, Serialize};
use snapshot::TreeId;

use crate::LayerId;

pub(crate) const RECORDS: Table<str, Json<Record>> = Table::new("layers.records");
/// `<parent>/<child>`.
pub(crate) const CHILDREN: Table<str, ()> = Table::new("layers.children");
/// When and how often a layer was used. Apart from the records because it changes with every use.
pub(crate) const USES: Table<str, Json<Uses>> = Table::new("layers.uses");
/// `<layer>\0<key>`: small records of other rooms about a layer.
pub(crate) const META: Table<[u8], Vec<u8>> = Table::new("layers.meta");
/// Chain of (blob, diff id) pairs to the layer on top of it.
pub(crate) const BLOB_CHAINS: Table<str, Json<LayerId>> = Table::new("layers.blob-chains");
/// `<chain id>/<layer>`: layers whose trees have the same content.
pub(crate) const CHAINS: Table<str, ()> = Table::new("layers.chains");
/// `<tree>/<layer>`: which layers a tree belongs to.
pub(crate) const TREES: Table<str, ()> = Table::new("layers.trees");
/// Disk use of a tree, once measured.
pub(crate) const SIZES: Table<str, Json<Size>> = Table::new("layers.sizes");
/// `<owner>/<borrower>`: trees that have inodes which were made in another one. The owner may be gone.
pub(crate) const LOANS: Table<str, ()> = Table::new("layers.loans");
/// Sketch number (8 bytes, big-endian) and tree: which trees may have files in common.
pub(crate) const SKETCHES: Table<[u8], ()> = Table::new("layers.sketches");
/// Trees that were compared with the others, and their sketch numbers.
pub(crate) const SKETCHED: Table<str, Vec<u8>> = Table::new("layers.sketched");
/// `<key>\0<layer>`: mutable trees by key.
pub(crate) const CELLS: Table<str, ()> = Table::new("layers.cells");
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub kind: KindRecord,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// As clients name it; empty is `regular`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub record_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeId>,
    /// The tree hides whole directories of what is below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    /// The same tree with those directories spelled out, for merges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explicit: Option<TreeId>,
    /// This layer with those below it down to `flat_over` as one tree, for stacks that would get too deep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat: Option<TreeId>,
    /// The first layer that `flat` does not stand for; none: it stands for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat_over: Option<LayerId>,
    /// For how many layers `flat` stands.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flat_count: usize,
    /// The first is the one to export unless another compression is forced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_chain_id: Option<Digest>,
    /// How long it took to make, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost: u64,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// In bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub bytes: u64,
    /// Of files that other trees have, too, and that are counted there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KindRecord {
    Layer {
        parent: Option<LayerId>,
    },
    Merge {
        inputs: Vec<LayerId>,
    },
    /// `computed` has a tree of its own; otherwise it is what `upper` has above `lower`.
    Diff {
        lower: Option<LayerId>,
        upper: Option<LayerId>,
        computed: bool,
    },
    Cell {
        key: String,
        base: Option<LayerId>,
    },
}

impl Record {
    pub fn trees(&self) -> impl Iterator<Item = &TreeId> {
        self.tree.iter().chain(&self.explicit).chain(&self.flat)
    }
}

impl KindRecord {
    pub fn parents(&self) -> Vec<LayerId> {
        match self {
            KindRecord::Layer { parent } | KindRecord::Cell { base: parent, .. } => parent.iter().copied().collect(),
            KindRecord::Merge { inputs } => inputs.clone(),
            KindRecord::Diff { lower, upper, .. } => lower.iter().chain(upper).copied().collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub count: u64,
    pub last: Option<Timestamp>,
}
