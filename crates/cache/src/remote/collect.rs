//! From the keys of a result to what is exported of it: all keys that lead there, and the layers of those results that are to go along.
use std::collections::{BTreeSet, HashMap, HashSet};

use fault::{Fault, Result};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use layers::{Compression, Layer, LayerBlob, LayerId, Layers, UNCOMPRESSED};
use oci::{Digest, Timestamp};
use progress::Reporter;
use session::Group;
use solver::{CacheId, Key, KeyId, Record, key::Node};
use task::Cancel;

use super::chains::{Chains, ItemId, Outcome, Piece, Source};
use super::import::CREATED_AT;
use crate::{Caches, Origin};

/// Which results go along with the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The result itself; of those that it was made of, the ones that have blobs already.
    Min,
    /// All; blobs are made where there are none.
    Max,
}

/// How many results are looked after at a time; how many layers are packed at a time is `layers`' business.
const AT_ONCE: usize = 16;

/// What an export looks into.
#[derive(Clone)]
pub struct Collector {
    pub caches: Caches,
    /// The imported caches that the build used.
    pub imports: BTreeSet<CacheId>,
    pub layers: Layers,
    pub compression: Compression,
    pub mode: Mode,
    pub sessions: Group,
    pub cancel: Cancel,
    pub reporter: Reporter,
}

/// Where a key is in memory; for telling keys apart only.
type Address = usize;
type Results = HashMap<KeyId, Outcome<Layer>>;

impl Collector {
    /// Adds what leads to a result that is known by `keys`.
    pub async fn collect(&self, keys: &[Key], chains: &mut Chains<Layer>) -> Result<()> {
        let results = match self.mode {
            Mode::Max => self.outcomes(reachable(keys), true).await?,
            Mode::Min => self.least(keys).await?,
        };
        Weaving { collector: self, results: &results, chains, known: HashMap::new(), ways: HashMap::new() }.weave(keys);
        Ok(())
    }

    /// From the result down to the first that has layers these are made; below, only what is there is taken.
    async fn least(&self, keys: &[Key]) -> Result<Results> {
        let mut results = Results::new();
        let mut seen: HashSet<Address> = HashSet::new();
        let mut level: Vec<Key> = keys.to_vec();
        let mut below: Vec<Key> = Vec::new();
        while !level.is_empty() {
            level.retain(|key| seen.insert(address(key)));
            let found = self.outcomes(level.clone(), true).await?;
            let (done, open): (Vec<Key>, Vec<Key>) = level.into_iter().partition(|key| found.contains_key(&key.id));
            let inputs = |keys: Vec<Key>| keys.iter().flat_map(|k| k.inputs.iter().flatten()).map(|i| i.key.clone()).collect::<Vec<_>>();
            below.extend(inputs(done));
            level = inputs(open);
            results.extend(found);
        }
        let rest = reachable(&below).into_iter().filter(|key| !results.contains_key(&key.id)).collect();
        results.extend(self.outcomes(rest, false).await?);
        Ok(results)
    }

    async fn outcomes(&self, keys: Vec<Key>, make: bool) -> Result<Results> {
        let mut wanted: HashMap<KeyId, Key> = HashMap::new();
        for key in keys {
            // What sources give can be had from the sources.
            if !key.inputs.is_empty() && !key.volatile && key.export != Some(false) {
                wanted.entry(key.id.clone()).or_insert(key);
            }
        }
        let work = wanted.into_values().map(|key| async move { Ok::<_, Fault>((key.id.clone(), self.outcome(&key.id, make).await?)) });
        let found: Vec<_> = iter(work.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().filter_map(|(id, outcome)| Some((id, outcome?))).collect())
    }

    /// The newest result of a key that can be had.
    async fn outcome(&self, key: &KeyId, make: bool) -> Result<Option<Outcome<Layer>>> {
        let mut records = self.caches.records(&self.imports, key, |_| true);
        records.sort_by_key(|r| (std::cmp::Reverse(r.created_at), r.cache));
        for record in records {
            let Some(layer) = self.load(&record).await? else { continue };
            let blobs = if make {
                match layer.blobs(self.compression, &self.cancel, &self.reporter).await {
                    Ok(blobs) => Some(blobs),
                    Err(fault) if self.cancel.is_cancelled() => return Err(fault),
                    Err(fault) => {
                        tracing::warn!(layer = %layer.id(), %fault, "a result is left out of a cache export");
                        None
                    }
                }
            } else {
                layer.blobs_at_hand(self.compression)
            };
            if let Some(blobs) = blobs.filter(|b| !b.is_empty()) {
                return Ok(Some(Outcome { created_at: Timestamp::from_unix_nanos(record.created_at), pieces: pieces(blobs) }));
            }
        }
        Ok(None)
    }

    /// `None`: scratch, or gone.
    async fn load(&self, record: &Record) -> Result<Option<Layer>> {
        if record.cache != CacheId::LOCAL {
            return match self.caches.import(record.cache) {
                Some(import) => import.load(&record.id, &self.sessions, &self.cancel).await,
                None => Ok(None),
            };
        }
        let Ok(id) = record.id.parse::<LayerId>() else { return Ok(None) };
        let Some(layer) = self.layers.get(&id)? else { return Ok(None) };
        Ok(layer.missing()?.is_empty().then_some(layer))
    }

    fn origins(&self, key: &KeyId) -> Vec<Origin> {
        self.caches.origins(&self.imports, key)
    }
}

fn pieces(blobs: Vec<LayerBlob>) -> Vec<Piece<Layer>> {
    let piece = |blob: LayerBlob| {
        let mut descriptor = blob.descriptor;
        descriptor.annotations.retain(|key, _| !key.starts_with(registry::SOURCE_ANNOTATION));
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), blob.diff_id.to_string());
        descriptor.annotations.insert(CREATED_AT.to_owned(), blob.created.utc().to_string());
        Piece { descriptor, layer: blob.layer }
    };
    blobs.into_iter().map(piece).collect()
}

fn address(key: &Key) -> Address {
    std::ptr::from_ref::<Node>(key) as usize
}

/// The keys and all that they are made of, each once.
fn reachable(keys: &[Key]) -> Vec<Key> {
    let mut seen = HashSet::new();
    let mut pending = keys.to_vec();
    let mut all = Vec::new();
    while let Some(key) = pending.pop() {
        if seen.insert(address(&key)) {
            pending.extend(key.inputs.iter().flatten().map(|i| i.key.clone()));
            all.push(key);
        }
    }
    all
}

/// Adds records, those that others are made of first. Keys are as deep as graphs are, so nothing here recurses.
struct Weaving<'a> {
    collector: &'a Collector,
    results: &'a Results,
    chains: &'a mut Chains<Layer>,
    known: HashMap<Address, Option<ItemId>>,
    /// The records that stored links make of a key. While that is being found out, none: links may run in circles.
    ways: HashMap<KeyId, Vec<ItemId>>,
}

enum Visit<T> {
    Enter(T),
    Leave(T),
}

impl Weaving<'_> {
    fn weave(&mut self, keys: &[Key]) {
        let mut pending: Vec<Visit<Key>> = keys.iter().cloned().map(Visit::Enter).collect();
        while let Some(visit) = pending.pop() {
            match visit {
                Visit::Enter(key) => {
                    if self.known.contains_key(&address(&key)) {
                        continue;
                    }
                    self.known.insert(address(&key), None);
                    pending.push(Visit::Leave(key.clone()));
                    pending.extend(key.inputs.iter().flatten().map(|i| Visit::Enter(i.key.clone())));
                }
                Visit::Leave(key) => {
                    let item = self.add(&key);
                    self.known.insert(address(&key), item);
                }
            }
        }
    }

    fn add(&mut self, key: &Key) -> Option<ItemId> {
        if key.id.is_random() {
            return None;
        }
        let Some(output) = key.output else { return self.chains.add(key.id.digest(), &[], None) };
        if key.inputs.is_empty() {
            return self.chains.add(key.id.digest(), &[], None);
        }
        self.follow(&key.id);
        let inputs: Vec<Vec<Source>> = key
            .inputs
            .iter()
            .map(|ways| {
                let source = |way: &solver::key::InputKey| {
                    let item = self.known.get(&address(&way.key)).copied().flatten()?;
                    Some(Source { item, selector: text(way.selector.as_ref()) })
                };
                ways.iter().filter_map(source).collect()
            })
            .collect();
        let record = KeyId::root(&key.digest, output);
        self.chains.add(record.digest(), &inputs, self.results.get(&key.id).cloned())
    }

    /// Adds the other ways that are known to lead to a key.
    fn follow(&mut self, key: &KeyId) {
        let mut pending = vec![Visit::Enter(key.clone())];
        let mut origins: HashMap<KeyId, Vec<Origin>> = HashMap::new();
        while let Some(visit) = pending.pop() {
            match visit {
                Visit::Enter(id) => {
                    if self.ways.contains_key(&id) {
                        continue;
                    }
                    self.ways.insert(id.clone(), Vec::new());
                    let found = self.collector.origins(&id);
                    pending.push(Visit::Leave(id.clone()));
                    pending.extend(found.iter().map(|o| Visit::Enter(o.from.clone())));
                    origins.insert(id, found);
                }
                Visit::Leave(id) => {
                    let found = origins.remove(&id).unwrap_or_default();
                    let items = self.add_ways(&id, &found);
                    self.ways.insert(id, items);
                }
            }
        }
    }

    fn add_ways(&mut self, id: &KeyId, origins: &[Origin]) -> Vec<ItemId> {
        if origins.is_empty() {
            return self.chains.add(id.digest(), &[], None).into_iter().collect();
        }
        let mut by_record: std::collections::BTreeMap<&Digest, Vec<Vec<Source>>> = std::collections::BTreeMap::new();
        for origin in origins {
            let inputs = by_record.entry(&origin.record).or_default();
            let input = origin.input as usize;
            if inputs.len() <= input {
                inputs.resize(input + 1, Vec::new());
            }
            let selector = text(origin.selector.as_ref());
            let items = self.ways.get(&origin.from).into_iter().flatten();
            inputs[input].extend(items.map(|item| Source { item: *item, selector: selector.clone() }));
        }
        by_record.into_iter().filter_map(|(record, inputs)| self.chains.add(record, &inputs, None)).collect()
    }
}

fn text(selector: Option<&Digest>) -> String {
    selector.map_or_else(String::new, ToString::to_string)
}
