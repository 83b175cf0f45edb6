//! Cache keys: what a result is known by, and how it was reached.
use std::collections::BTreeSet;
use std::sync::Arc;

use oci::Digest;

/// Names one cache key in every cache. Keys of vertices without inputs, and keys made of content, are computed as BuildKit does; others are minted
/// from the first path that led to them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Digest);

impl KeyId {
    /// The key of one output of a vertex without inputs.
    pub fn root(digest: &Digest, output: u32) -> Self {
        match digest.is_random() {
            true => Self(digest.clone()),
            false => Self(Digest::of(format!("{digest}@{output}"))),
        }
    }

    /// The key of a result with this content.
    pub fn content(digest: &Digest) -> Self {
        Self(Digest::of(format!("{digest}@-1")))
    }

    /// Whether the key means nothing outside the session that made it, so that it must not be stored.
    pub fn is_random(&self) -> bool {
        self.0.is_random()
    }

    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for KeyId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How an op of digest `digest` uses a key: leads from the key of its `input`th input to the key of its `output`th output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    pub input: u32,
    pub output: u32,
    pub digest: Digest,
    /// The part of the input that is used; never set where the input's key is its content.
    pub selector: Option<Digest>,
}

/// A key with the keys that lead to it. Clones share.
#[derive(Clone)]
pub struct Key(Arc<Node>);

pub struct Node {
    pub id: KeyId,
    /// Digest of the op; of the content for a content key.
    pub digest: Digest,
    /// `None` for a content key.
    pub output: Option<u32>,
    /// For each input, the keys that it is known by.
    pub inputs: Vec<Vec<InputKey>>,
    /// Whether the vertex's own wish is to be part of cache exports, if it has one.
    pub export: Option<bool>,
    /// Whether the local cache has the links that lead here.
    pub stored: bool,
    /// Reachable only through keys that must not be stored.
    pub volatile: bool,
}

#[derive(Clone)]
pub struct InputKey {
    pub key: Key,
    pub selector: Option<Digest>,
}

/// Shows one level: what leads here may be a graph of any depth.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inputs: Vec<Vec<&KeyId>> = self.inputs.iter().map(|keys| keys.iter().map(|k| &k.key.id).collect()).collect();
        f.debug_struct("Key").field("id", &self.id).field("digest", &self.digest).field("inputs", &inputs).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Key {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Key {
    pub fn root(digest: &Digest, output: u32, export: Option<bool>) -> Self {
        let id = KeyId::root(digest, output);
        let volatile = id.is_random();
        let digest = digest.clone();
        Self(Arc::new(Node { id, digest, output: Some(output), inputs: Vec::new(), export, stored: true, volatile }))
    }

    pub fn content(digest: &Digest) -> Self {
        let (id, digest) = (KeyId::content(digest), digest.clone());
        Self(Arc::new(Node { id, digest, output: None, inputs: Vec::new(), export: None, stored: true, volatile: false }))
    }

    /// `stored` says whether the local cache knows the key already.
    pub fn derived(id: KeyId, digest: &Digest, output: u32, inputs: Vec<Vec<InputKey>>, export: Option<bool>, stored: bool) -> Self {
        let volatile = inputs.iter().any(|keys| keys.iter().all(|k| k.key.volatile));
        Self(Arc::new(Node { id, digest: digest.clone(), output: Some(output), inputs, export, stored, volatile }))
    }

    /// An id for a result that no cache knows yet.
    pub fn mint(digest: &Digest, output: u32, inputs: &[Vec<InputKey>]) -> KeyId {
        let mut text = format!("kiln.key.v0\0{digest}@{output}");
        for keys in inputs {
            match representative(keys) {
                Some(k) => text.push_str(&format!("\0{}@{}", k.key.id, k.selector.as_ref().map_or("", Digest::as_str))),
                None => text.push('\0'),
            }
        }
        KeyId(Digest::of(text))
    }

    /// All links from inputs' keys to this one that may be stored.
    pub fn links(&self) -> impl Iterator<Item = (&Key, Link)> {
        self.inputs.iter().enumerate().flat_map(move |(input, keys)| {
            keys.iter().filter(|k| !k.key.volatile).map(move |k| {
                let link = Link {
                    input: input as u32,
                    output: self.output.unwrap_or_default(),
                    digest: self.digest.clone(),
                    selector: k.selector.clone(),
                };
                (&k.key, link)
            })
        })
    }
}

/// The key that stands for an input where one has to be chosen: by content if there is one, else by definition.
fn representative(keys: &[InputKey]) -> Option<&InputKey> {
    keys.iter().min_by_key(|k| (k.key.output.is_some(), k.key.volatile, &k.key.id))
}

/// Chains of keys are as long as graphs are deep, so they are taken apart without recursion.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending: Vec<Vec<Vec<InputKey>>> = vec![std::mem::take(&mut self.inputs)];
        while let Some(inputs) = pending.pop() {
            for input in inputs.into_iter().flatten() {
                if let Some(mut node) = Arc::into_inner(input.key.0) {
                    pending.push(std::mem::take(&mut node.inputs));
                }
            }
        }
    }
}

/// Names one cache among those that a vertex may look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheId(pub u32);

impl CacheId {
    /// The one that results are saved to. Always looked into.
    pub const LOCAL: CacheId = CacheId(0);
}

/// A result that a cache has for some key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub cache: CacheId,
    /// Meaningful to that cache only.
    pub id: String,
    /// Unix nanoseconds; the newest record is used first.
    pub created_at: i64,
}

/// What the solver remembers between builds. All calls are made on the path of a build and must not wait for a disk to sync.
pub trait Store {
    type Result: Clone;

    /// Where `link` leads from `from`, in the local cache and in `caches`.
    fn links(&self, caches: &BTreeSet<CacheId>, from: &KeyId, link: &Link) -> Vec<Target>;

    /// The results that a key has and that still exist.
    fn records(&self, caches: &BTreeSet<CacheId>, key: &KeyId) -> Vec<Record>;

    /// Adds a link to the local cache.
    fn connect(&self, from: &KeyId, link: &Link, to: &KeyId);

    /// Adds a result to a key of the local cache. `created_at` (Unix nanoseconds) is that of the record it came from; `None` is now.
    fn save(&self, key: &KeyId, result: &Self::Result, created_at: Option<i64>);
}

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub id: KeyId,
    /// Whether the local cache has the link.
    pub local: bool,
}
