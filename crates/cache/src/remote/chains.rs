//! What is to be exported, as it is put together: records that are merged where they turn out to be the same.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci::{Descriptor, Digest, Timestamp};

use super::document::{CacheConfig, InputEntry, LayerEntry, RecordEntry, ResultEntry};
use super::keys::order;

/// A record of [`Chains`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(usize);

/// A record that leads to another, and the part of it that counts; empty for all of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub item: ItemId,
    pub selector: String,
}

/// A layer's blob, with the annotations that go out with it, and whoever can bring it.
#[derive(Debug, Clone)]
pub struct Piece<L> {
    pub descriptor: Descriptor,
    pub layer: L,
}

/// A result: its layers, lowest first.
#[derive(Debug, Clone)]
pub struct Outcome<L> {
    pub created_at: Timestamp,
    pub pieces: Vec<Piece<L>>,
}

pub struct Chains<L> {
    items: Vec<Item<L>>,
    roots: HashMap<Digest, ItemId>,
}

struct Item<L> {
    digest: Digest,
    /// For each input, what it is known by.
    parents: Vec<BTreeSet<Source>>,
    children: HashMap<Step, BTreeSet<ItemId>>,
    result: Option<Outcome<L>>,
    /// The record that this one turned out to be.
    same_as: Option<ItemId>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Step {
    input: usize,
    selector: String,
    digest: Digest,
}

/// The document, and the blobs that it names.
pub struct Marshaled<L> {
    pub config: CacheConfig,
    pub blobs: BTreeMap<Digest, Piece<L>>,
}

impl<L> Default for Chains<L> {
    fn default() -> Self {
        Self { items: Vec::new(), roots: HashMap::new() }
    }
}

impl<L: Clone> Chains<L> {
    /// Adds a record. `inputs` says for each input what it is known by. `None`: it must not leave, or some input is not known.
    pub fn add(&mut self, digest: &Digest, inputs: &[Vec<Source>], result: Option<Outcome<L>>) -> Option<ItemId> {
        if digest.is_random() || inputs.iter().any(Vec::is_empty) {
            return None;
        }
        let id = if inputs.is_empty() { self.root(digest) } else { self.derived(digest, inputs) };
        let item = &mut self.items[id.0];
        if let Some(result) = result
            && item.result.as_ref().is_none_or(|known| known.created_at < result.created_at)
        {
            item.result = Some(result);
        }
        Some(id)
    }

    fn root(&mut self, digest: &Digest) -> ItemId {
        if let Some(id) = self.roots.get(digest) {
            return *id;
        }
        let id = self.push(digest, 0);
        self.roots.insert(digest.clone(), id);
        id
    }

    fn derived(&mut self, digest: &Digest, inputs: &[Vec<Source>]) -> ItemId {
        let matches = self.matching(digest, inputs);
        let id = match matches.first() {
            Some(first) => *first,
            None => self.push(digest, inputs.len()),
        };
        matches.iter().skip(1).for_each(|other| self.merge(*other, id));
        for (input, sources) in inputs.iter().enumerate() {
            for source in sources {
                let source = Source { item: self.find(source.item), selector: source.selector.clone() };
                if !self.has_parent(id, input, &source) && !self.leads_to(id, source.item) {
                    self.connect(source, input, id);
                }
            }
        }
        id
    }

    /// Records of that digest which all inputs lead to.
    fn matching(&self, digest: &Digest, inputs: &[Vec<Source>]) -> Vec<ItemId> {
        let mut common: Option<BTreeSet<ItemId>> = None;
        for (input, sources) in inputs.iter().enumerate() {
            let mut found = BTreeSet::new();
            for source in sources {
                let step = Step { input, selector: source.selector.clone(), digest: digest.clone() };
                let children = self.items[self.find(source.item).0].children.get(&step);
                found.extend(children.into_iter().flatten().map(|child| self.find(*child)));
            }
            common = Some(match common {
                None => found,
                Some(common) => common.intersection(&found).copied().collect(),
            });
        }
        common.into_iter().flatten().collect()
    }

    fn merge(&mut self, other: ItemId, into: ItemId) {
        let (other, into) = (self.find(other), self.find(into));
        if other == into {
            return;
        }
        let parents = std::mem::take(&mut self.items[other.0].parents);
        let children = std::mem::take(&mut self.items[other.0].children);
        let result = self.items[other.0].result.take();
        self.items[other.0].same_as = Some(into);
        for (step, targets) in children {
            for target in targets.into_iter().map(|t| self.find(t)).collect::<BTreeSet<_>>() {
                let old = Source { item: other, selector: step.selector.clone() };
                if let Some(sources) = self.items[target.0].parents.get_mut(step.input) {
                    sources.remove(&old);
                }
                if target != into {
                    self.connect(Source { item: into, selector: step.selector.clone() }, step.input, target);
                }
            }
        }
        for (input, sources) in parents.into_iter().enumerate() {
            for source in sources {
                if !self.leads_to(into, source.item) {
                    self.connect(source, input, into);
                }
            }
        }
        let item = &mut self.items[into.0];
        if let Some(result) = result
            && item.result.as_ref().is_none_or(|known| known.created_at < result.created_at)
        {
            item.result = Some(result);
        }
    }

    fn connect(&mut self, source: Source, input: usize, target: ItemId) {
        let step = Step { input, selector: source.selector.clone(), digest: self.items[target.0].digest.clone() };
        self.items[source.item.0].children.entry(step).or_default().insert(target);
        let parents = &mut self.items[target.0].parents;
        if parents.len() <= input {
            parents.resize(input + 1, BTreeSet::new());
        }
        parents[input].insert(source);
    }

    fn has_parent(&self, id: ItemId, input: usize, source: &Source) -> bool {
        self.items[id.0].parents.get(input).is_some_and(|p| p.contains(source))
    }

    /// Whether `target` is `from` or comes of it: then it must not be what `from` is made of.
    fn leads_to(&self, from: ItemId, target: ItemId) -> bool {
        let (mut seen, mut pending) = (BTreeSet::from([from]), vec![from]);
        while let Some(at) = pending.pop() {
            if at == target {
                return true;
            }
            for child in self.items[at.0].children.values().flatten().map(|c| self.find(*c)) {
                if seen.insert(child) {
                    pending.push(child);
                }
            }
        }
        false
    }

    fn push(&mut self, digest: &Digest, inputs: usize) -> ItemId {
        let parents = vec![BTreeSet::new(); inputs];
        self.items.push(Item { digest: digest.clone(), parents, children: HashMap::new(), result: None, same_as: None });
        ItemId(self.items.len() - 1)
    }

    fn find(&self, mut id: ItemId) -> ItemId {
        while let Some(next) = self.items[id.0].same_as {
            id = next;
        }
        id
    }

    /// The document in its canonical order.
    pub fn marshal(&self) -> Marshaled<L> {
        let mut stacks = Stacks { layers: Vec::new(), by_place: HashMap::new(), blobs: BTreeMap::new() };
        let live: Vec<usize> = (0..self.items.len()).filter(|n| self.items[*n].same_as.is_none()).collect();
        let place: HashMap<usize, i64> = live.iter().enumerate().map(|(new, old)| (*old, new as i64)).collect();
        let mut records = Vec::with_capacity(live.len());
        for n in &live {
            let item = &self.items[*n];
            let entry = |s: &Source| InputEntry { selector: s.selector.clone(), link: place[&self.find(s.item).0] };
            let inputs = item.parents.iter().map(|sources| sources.iter().map(entry).collect()).collect();
            let result = item.result.as_ref().and_then(|result| Some((stacks.add(&result.pieces)?, result.created_at.utc())));
            let results = result.map(|(layer, created_at)| ResultEntry { layer: layer as i64, created_at });
            records.push(RecordEntry { results: results.into_iter().collect(), chains: Vec::new(), digest: item.digest.clone(), inputs });
        }
        let mut config = CacheConfig { layers: stacks.layers, records };
        sort_layers(&mut config);
        sort_records(&mut config);
        Marshaled { config, blobs: stacks.blobs }
    }
}

struct Stacks<L> {
    layers: Vec<LayerEntry>,
    by_place: HashMap<(Digest, i64), usize>,
    blobs: BTreeMap<Digest, Piece<L>>,
}

impl<L: Clone> Stacks<L> {
    /// Returns the position of the topmost.
    fn add(&mut self, pieces: &[Piece<L>]) -> Option<usize> {
        let mut parent = -1;
        let mut top = None;
        for piece in pieces {
            let blob = &piece.descriptor.digest;
            self.blobs.entry(blob.clone()).or_insert_with(|| piece.clone());
            let at = *self.by_place.entry((blob.clone(), parent)).or_insert_with(|| {
                self.layers.push(LayerEntry { blob: blob.clone(), parent, annotations: None });
                self.layers.len() - 1
            });
            parent = at as i64;
            top = Some(at);
        }
        top
    }
}

/// By blob, then by what is below.
fn sort_layers(config: &mut CacheConfig) {
    // Parents come first here, so what is below has its name already.
    let mut below: Vec<Option<Digest>> = Vec::with_capacity(config.layers.len());
    for layer in &config.layers {
        let parent = usize::try_from(layer.parent).ok();
        below.push(parent.map(|n| Digest::of(format!("{} {:?}", config.layers[n].blob, below[n]))));
    }
    let mut order: Vec<usize> = (0..config.layers.len()).collect();
    order.sort_by(|a, b| (&config.layers[*a].blob, &below[*a]).cmp(&(&config.layers[*b].blob, &below[*b])));
    let moved = inverse(&order);
    config.layers = order.iter().map(|n| config.layers[*n].clone()).collect();
    for layer in config.layers.iter_mut().filter(|l| l.parent >= 0) {
        layer.parent = moved[layer.parent as usize];
    }
    for result in config.records.iter_mut().flat_map(|r| &mut r.results) {
        result.layer = moved[result.layer as usize];
    }
}

/// By digest, number of inputs, then input by input: how many, selectors, digests.
fn sort_records(config: &mut CacheConfig) {
    // Selectors and digests are compared in an order that does not depend on positions.
    let digests: Vec<Digest> = config.records.iter().map(|r| r.digest.clone()).collect();
    for inputs in config.records.iter_mut().flat_map(|r| &mut r.inputs) {
        inputs.sort_by(|a, b| (&a.selector, &digests[a.link as usize]).cmp(&(&b.selector, &digests[b.link as usize])));
    }
    let mut order: Vec<usize> = (0..config.records.len()).collect();
    let names = names(config);
    order.sort_by(|a, b| compare(&config.records[*a], &config.records[*b], &digests).then_with(|| names[*a].cmp(&names[*b])));
    let moved = inverse(&order);
    config.records = order.iter().map(|n| config.records[*n].clone()).collect();
    for inputs in config.records.iter_mut().flat_map(|r| &mut r.inputs) {
        inputs.iter_mut().for_each(|i| i.link = moved[i.link as usize]);
        inputs.sort_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
    }
}

/// For each record a name made of everything that leads to it, so that no two compare equal.
fn names(config: &CacheConfig) -> Vec<Option<Digest>> {
    let mut names: Vec<Option<Digest>> = vec![None; config.records.len()];
    // An order there is: nothing is made of what comes of it.
    for n in order(config).unwrap_or_default() {
        let record = &config.records[n];
        let mut inputs: Vec<String> = Vec::new();
        for (input, entries) in record.inputs.iter().enumerate() {
            inputs.extend(entries.iter().map(|e| format!("{input} {} {:?}", e.selector, names[e.link as usize])));
        }
        inputs.sort();
        names[n] = Some(Digest::of(format!("{} {}", record.digest, inputs.join(" "))));
    }
    names
}

fn compare(a: &RecordEntry, b: &RecordEntry, digests: &[Digest]) -> std::cmp::Ordering {
    let mut order = a.digest.cmp(&b.digest).then(a.inputs.len().cmp(&b.inputs.len()));
    for (a, b) in a.inputs.iter().zip(&b.inputs) {
        order = order.then(a.len().cmp(&b.len()));
        for (a, b) in a.iter().zip(b) {
            order = order.then_with(|| (&a.selector, &digests[a.link as usize]).cmp(&(&b.selector, &digests[b.link as usize])));
        }
    }
    order
}

fn inverse(order: &[usize]) -> Vec<i64> {
    let mut moved = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, old)| moved[*old] = new as i64);
    moved
}

#[cfg(test)]
mod tests {
    use super::super::keys::Keys;
    use super::*;

    fn d(name: &str) -> Digest {
        Digest::of(name)
    }

    fn outcome(seconds: i64, blobs: &[&str]) -> Option<Outcome<()>> {
        let piece = |blob: &&str| Piece { descriptor: Descriptor::new("m", d(blob), 1), layer: () };
        Some(Outcome { created_at: Timestamp::from_unix(seconds, 0), pieces: blobs.iter().map(piece).collect() })
    }

    fn plain(item: ItemId) -> Source {
        Source { item, selector: String::new() }
    }

    #[test]
    fn records_reached_by_several_ways_are_one() {
        let mut chains = Chains::default();
        let a = chains.add(&d("a"), &[], None).unwrap();
        let b = chains.add(&d("b"), &[], None).unwrap();
        assert_eq!(chains.add(&d("a"), &[], None), Some(a));
        let by_a = chains.add(&d("run"), &[vec![plain(a)]], outcome(1, &["x"])).unwrap();
        let by_b = chains.add(&d("run"), &[vec![plain(b)]], outcome(2, &["y"])).unwrap();
        assert_ne!(by_a, by_b);
        let of_b = chains.add(&d("next"), &[vec![plain(by_b)]], outcome(3, &["y", "z"])).unwrap();
        let both = chains.add(&d("run"), &[vec![plain(a), plain(b)]], None).unwrap();
        assert_eq!(chains.find(by_a), chains.find(by_b));
        assert_eq!(both, chains.find(by_a));
        assert_eq!(chains.add(&d("next"), &[vec![plain(by_a)]], None), Some(of_b));
        let Marshaled { config, blobs } = chains.marshal();
        assert_eq!(config.records.len(), 4);
        let run = config.records.iter().find(|r| r.digest == d("run")).unwrap();
        assert_eq!((run.inputs.len(), run.inputs[0].len()), (1, 2));
        assert_eq!(config.layers[run.results[0].layer as usize].blob, d("y"), "the newest result stands");
        assert_eq!(blobs.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&d("y"), &d("z")]));
        let descriptors = blobs.into_iter().map(|(digest, piece)| (digest, piece.descriptor)).collect();
        assert_eq!(Keys::new(&config, descriptors).unwrap().len(), 2);
    }

    #[test]
    fn nothing_is_made_of_what_comes_of_it() {
        let mut chains = Chains::<()>::default();
        let content = chains.add(&d("content"), &[], None).unwrap();
        let copy = chains.add(&d("copy"), &[vec![plain(content)]], None).unwrap();
        // The copy has the content that it was made of, so the next equal copy is the same.
        let again = chains.add(&d("copy"), &[vec![plain(copy), plain(content)]], None).unwrap();
        assert_eq!(copy, again);
        let config = chains.marshal().config;
        assert_eq!(config.records.len(), 2);
        Keys::new(&config, BTreeMap::new()).unwrap();
    }

    #[test]
    fn what_belongs_to_a_session_stays() {
        let mut chains = Chains::<()>::default();
        assert_eq!(chains.add(&d("local").into_random(), &[], None), None);
        assert_eq!(chains.add(&d("copy"), &[vec![]], None), None);
        assert_eq!(chains.marshal().config, CacheConfig::default());
    }

    /// What BuildKit wrote, put together anew out of its parts in another order, has its records in the same order.
    #[test]
    fn the_order_is_buildkits() {
        let golden = CacheConfig::parse(include_bytes!("../../tests/golden/config.json")).unwrap();
        let mut chains = Chains::default();
        let mut items: Vec<Option<ItemId>> = vec![None; golden.records.len()];
        for n in order(&golden).unwrap() {
            let record = &golden.records[n];
            let source = |i: &InputEntry| Source { item: items[i.link as usize].unwrap(), selector: i.selector.clone() };
            let inputs: Vec<Vec<Source>> = record.inputs.iter().map(|i| i.iter().rev().map(source).collect()).collect();
            let outcome = record.results.first().map(|result| {
                let chain = std::iter::successors(usize::try_from(result.layer).ok(), |n| usize::try_from(golden.layers[*n].parent).ok());
                let mut pieces: Vec<_> =
                    chain.map(|n| Piece { descriptor: Descriptor::new("m", golden.layers[n].blob.clone(), 1), layer: () }).collect();
                pieces.reverse();
                Outcome { created_at: result.created_at, pieces }
            });
            items[n] = chains.add(&record.digest, &inputs, outcome);
        }
        let ours = chains.marshal().config;
        let facts = |config: &CacheConfig| -> Vec<_> {
            let record = |r: &RecordEntry| (r.digest.clone(), r.inputs.clone(), r.results.first().map(|r| r.created_at));
            config.records.iter().map(record).collect()
        };
        assert_eq!(facts(&ours), facts(&golden));
        let blobs = |config: &CacheConfig| config.layers.iter().map(|l| l.blob.clone()).collect::<Vec<_>>();
        assert_eq!(blobs(&ours), blobs(&golden));
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let build = |names: &[&str]| {
            let mut chains = Chains::default();
            for name in names {
                let root = chains.add(&d(name), &[], None).unwrap();
                let run = chains.add(&d(&format!("run {name}")), &[vec![plain(root)]], outcome(5, &["base", name])).unwrap();
                chains.add(&d("end"), &[vec![plain(run)]], outcome(6, &["base", name, "end"])).unwrap();
            }
            String::from_utf8(chains.marshal().config.to_bytes()).unwrap()
        };
        assert_eq!(build(&["p", "q", "r"]), build(&["r", "p", "q"]));
    }
}
