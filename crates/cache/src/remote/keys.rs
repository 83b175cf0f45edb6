//! A cache config that was read, as something that can be asked.
use std::collections::{BTreeMap, HashMap};

use oci::{Descriptor, Digest, Timestamp};
use solver::{KeyId, Link};

use super::document::CacheConfig;
use crate::{Entry, Origin};

/// Keys, what leads from one to the next, and their results.
#[derive(Default)]
pub struct Keys {
    links: HashMap<(KeyId, Step), Vec<KeyId>>,
    origins: HashMap<KeyId, Vec<Origin>>,
    results: HashMap<KeyId, Vec<Entry>>,
    stacks: Vec<Stack>,
    layers: Vec<Layer>,
    descriptors: BTreeMap<Digest, Descriptor>,
}

/// A link as configs have it: digest and output of the op are one.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Step {
    record: Digest,
    input: u32,
    selector: Option<Digest>,
}

struct Layer {
    blob: Digest,
    parent: Option<usize>,
}

/// The layers of a result.
enum Stack {
    Top(usize),
    Listed(Vec<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("invalid looping record")]
    LoopingRecord,
    #[error("invalid record ID: {index}")]
    Record { index: i64 },
    #[error("invalid empty input for record {index}")]
    EmptyInput { index: usize },
    #[error("invalid layer index {index}")]
    Layer { index: i64 },
    #[error("invalid looping layer")]
    LoopingLayer,
}

impl Keys {
    /// `descriptors` are the blobs that can be had. Results that need others are left out.
    pub fn new(config: &CacheConfig, descriptors: BTreeMap<Digest, Descriptor>) -> Result<Self, KeysError> {
        let layers = layers(config)?;
        let order = order(config)?;
        let whole = whole(&layers, &descriptors);
        let mut keys = Self { layers, descriptors, ..Self::default() };
        let mut ids: Vec<Option<KeyId>> = vec![None; config.records.len()];
        for index in order {
            let id = keys.add_record(config, index, &ids);
            keys.add_results(config, index, &id, &whole)?;
            ids[index] = Some(id);
        }
        Ok(keys)
    }

    fn add_record(&mut self, config: &CacheConfig, index: usize, ids: &[Option<KeyId>]) -> KeyId {
        let record = &config.records[index];
        let mut ways = Vec::new();
        for (input, entries) in record.inputs.iter().enumerate() {
            for entry in entries {
                let from = ids[entry.link as usize].clone().expect("records come after those that they are made of");
                ways.push((input as u32, from, entry.selector.clone()));
            }
        }
        if ways.is_empty() {
            return KeyId::from(record.digest.clone());
        }
        ways.sort();
        ways.dedup();
        let mut text = format!("kiln.imported.v0\0{}", record.digest);
        ways.iter().for_each(|(input, from, selector)| text.push_str(&format!("\0{input}@{from}@{selector}")));
        let id = KeyId::from(Digest::of(text));
        for (input, from, selector) in ways {
            let selector = match selector.as_str() {
                "" => None,
                text => match text.parse::<Digest>() {
                    Ok(digest) => Some(digest),
                    Err(_) => continue, // nothing that could be asked for
                },
            };
            let step = Step { record: record.digest.clone(), input, selector: selector.clone() };
            let targets = self.links.entry((from.clone(), step)).or_default();
            if !targets.contains(&id) {
                targets.push(id.clone());
            }
            let origin = Origin { from, input, selector, record: record.digest.clone() };
            let origins = self.origins.entry(id.clone()).or_default();
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        id
    }

    fn add_results(&mut self, config: &CacheConfig, index: usize, id: &KeyId, whole: &[bool]) -> Result<(), KeysError> {
        let record = &config.records[index];
        let place = |n: i64| usize::try_from(n).ok().filter(|n| *n < config.layers.len()).ok_or(KeysError::Layer { index: n });
        let mut found: Vec<(Timestamp, Stack)> = Vec::new();
        for result in &record.results {
            let top = place(result.layer)?;
            if whole[top] {
                found.push((result.created_at, Stack::Top(top)));
            }
        }
        for chain in &record.chains {
            let listed = chain.layers.iter().map(|n| place(*n)).collect::<Result<Vec<_>, _>>()?;
            if !listed.is_empty() && listed.iter().all(|n| self.descriptors.contains_key(&self.layers[*n].blob)) {
                found.push((chain.created_at, Stack::Listed(listed)));
            }
        }
        for (created, stack) in found {
            let entry = Entry { result: self.stacks.len().to_string(), created_at: nanos(created) };
            self.stacks.push(stack);
            self.results.entry(id.clone()).or_default().push(entry);
        }
        Ok(())
    }

    pub fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        let record = KeyId::root(&link.digest, link.output).digest().clone();
        let step = Step { record, input: link.input, selector: link.selector.clone() };
        self.links.get(&(from.clone(), step)).cloned().unwrap_or_default()
    }

    pub fn results(&self, key: &KeyId) -> Vec<Entry> {
        self.results.get(key).cloned().unwrap_or_default()
    }

    pub fn has_recorded(&self, records: &[Digest]) -> bool {
        self.links.keys().any(|(_, step)| records.contains(&step.record))
    }

    pub fn origins(&self, key: &KeyId) -> Vec<Origin> {
        self.origins.get(key).cloned().unwrap_or_default()
    }

    /// The blobs of a result, lowest first.
    pub fn stack(&self, result: &str) -> Option<Vec<&Descriptor>> {
        let indexes = match self.stacks.get(result.parse::<usize>().ok()?)? {
            Stack::Listed(listed) => listed.clone(),
            Stack::Top(top) => {
                let mut chain: Vec<usize> = std::iter::successors(Some(*top), |n| self.layers[*n].parent).collect();
                chain.reverse();
                chain
            }
        };
        indexes.into_iter().map(|n| self.descriptors.get(&self.layers[n].blob)).collect()
    }

    /// How many results there are.
    pub fn len(&self) -> usize {
        self.stacks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }
}

fn nanos(time: Timestamp) -> i64 {
    time.unix_seconds().saturating_mul(1_000_000_000).saturating_add(i64::from(time.subsec_nanos()))
}

fn layers(config: &CacheConfig) -> Result<Vec<Layer>, KeysError> {
    let count = config.layers.len();
    let parent = |n: i64| match n {
        -1 => Ok(None),
        n => usize::try_from(n).ok().filter(|n| *n < count).map(Some).ok_or(KeysError::Layer { index: n }),
    };
    let layers = config.layers.iter().map(|l| Ok(Layer { blob: l.blob.clone(), parent: parent(l.parent)? }));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    // Each layer is walked over once: what an earlier walk has passed ends well.
    let mut passed = vec![0; count];
    for start in 0..count {
        let mut at = Some(start);
        while let Some(n) = at.filter(|n| passed[*n] == 0) {
            passed[n] = start + 1;
            at = layers[n].parent;
            if at.is_some_and(|next| passed[next] == start + 1) {
                return Err(KeysError::LoopingLayer);
            }
        }
    }
    Ok(layers)
}

/// For each layer, whether it and all below it can be had.
fn whole(layers: &[Layer], descriptors: &BTreeMap<Digest, Descriptor>) -> Vec<bool> {
    let mut known: Vec<Option<bool>> = vec![None; layers.len()];
    for start in 0..layers.len() {
        let mut pending = Vec::new();
        let mut at = Some(start);
        let below = loop {
            let Some(n) = at else { break true };
            if let Some(known) = known[n] {
                break known;
            }
            pending.push(n);
            at = layers[n].parent;
        };
        let mut so_far = below;
        for n in pending.into_iter().rev() {
            so_far &= descriptors.contains_key(&layers[n].blob);
            known[n] = Some(so_far);
        }
    }
    known.into_iter().map(|k| k.unwrap_or(false)).collect()
}

/// The records, those that others are made of first.
pub fn order(config: &CacheConfig) -> Result<Vec<usize>, KeysError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let count = config.records.len();
    let mut sources: Vec<Vec<usize>> = Vec::with_capacity(count);
    for (index, record) in config.records.iter().enumerate() {
        if record.inputs.iter().any(Vec::is_empty) {
            return Err(KeysError::EmptyInput { index });
        }
        let place = |n: i64| usize::try_from(n).ok().filter(|n| *n < count).ok_or(KeysError::Record { index: n });
        sources.push(record.inputs.iter().flatten().map(|i| place(i.link)).collect::<Result<_, _>>()?);
    }
    let mut marks = vec![Mark::New; count];
    let mut order = Vec::with_capacity(count);
    for start in 0..count {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.last_mut() {
            match sources[*at].get(*next) {
                None => {
                    marks[*at] = Mark::Done;
                    order.push(*at);
                    path.pop();
                }
                Some(source) => {
                    *next += 1;
                    match marks[*source] {
                        Mark::Open => return Err(KeysError::LoopingRecord),
                        Mark::Done => {}
                        Mark::New => {
                            marks[*source] = Mark::Open;
                            path.push((*source, 0));
                        }
                    }
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::of(name)
    }

    fn root(op: &str) -> Digest {
        KeyId::root(&digest(op), 0).digest().clone()
    }

    fn parse(text: &str, blobs: &[&str]) -> Result<Keys, KeysError> {
        let descriptors = blobs.iter().map(|b| (digest(b), Descriptor::new("m", digest(b), 1))).collect();
        Keys::new(&CacheConfig::parse(text.as_bytes()).unwrap(), descriptors)
    }

    fn link(op: &str, input: u32, selector: Option<&str>) -> Link {
        Link { input, output: 0, digest: digest(op), selector: selector.map(digest) }
    }

    #[test]
    fn keys_lead_to_results() {
        let text = format!(
            r#"{{"layers":[{{"blob":"{a}","parent":-1}},{{"blob":"{b}"}},{{"blob":"{c}","parent":1}}],
            "records":[{{"digest":"{run}","layers":[{{"layer":1,"createdAt":"2024-01-01T00:00:00Z"}}],"inputs":[[{{"link":1,"selector":"{s}"}},{{"link":2}}]]}},
            {{"digest":"{image}"}},{{"digest":"{chain}"}},
            {{"digest":"{copy}","layers":[{{"layer":2}}],"chains":[{{"layers":[1,0]}}],"inputs":[[{{"link":0}}],[{{"link":1}}]]}}]}}"#,
            a = digest("a"),
            b = digest("b"),
            c = digest("c"),
            s = digest("/s"),
            run = root("run"),
            image = root("image"),
            chain = root("chain"),
            copy = root("copy")
        );
        let keys = parse(&text, &["a", "b"]).unwrap();
        let image = KeyId::root(&digest("image"), 0);
        let run = keys.links(&image, &link("run", 0, Some("/s")));
        assert_eq!(run.len(), 1);
        assert_eq!(keys.links(&image, &link("run", 0, None)), []);
        assert_eq!(keys.links(&KeyId::root(&digest("chain"), 0), &link("run", 0, None)), run);
        assert_eq!(keys.origins(&run[0]).len(), 2);
        assert!(keys.has_recorded(&[root("other"), root("run")]) && !keys.has_recorded(&[root("other")]));
        let result = keys.results(&run[0]);
        assert_eq!(result[0].created_at, 1_704_067_200_000_000_000);
        let blobs = |result: &Entry| keys.stack(&result.result).unwrap().iter().map(|d| d.digest.clone()).collect::<Vec<_>>();
        assert_eq!(blobs(&result[0]), [digest("a"), digest("b")]);
        let copy = keys.links(&run[0], &link("copy", 0, None));
        assert_eq!(copy, keys.links(&image, &link("copy", 1, None)));
        let result = keys.results(&copy[0]);
        assert_eq!(result.len(), 1, "the one that needs c cannot be had");
        assert_eq!(blobs(&result[0]), [digest("b"), digest("a")]);
        assert_eq!(keys.len(), 2);
    }

    #[test]
    fn nonsense_is_named() {
        let d = digest("x");
        let record = |inputs: &str| format!(r#"{{"records":[{{"digest":"{d}","inputs":{inputs}}}]}}"#);
        assert_eq!(parse(&record(r#"[[{"link":0}]]"#), &[]).err(), Some(KeysError::LoopingRecord));
        assert_eq!(parse(&record(r#"[[{"link":1}]]"#), &[]).err(), Some(KeysError::Record { index: 1 }));
        assert_eq!(parse(&record(r#"[[{"link":-1}]]"#), &[]).err(), Some(KeysError::Record { index: -1 }));
        assert_eq!(parse(&record("[[]]"), &[]).err(), Some(KeysError::EmptyInput { index: 0 }));
        let layer = format!(r#"{{"layers":[{{"blob":"{d}","parent":1}},{{"blob":"{d}"}}]}}"#);
        assert_eq!(parse(&layer, &[]).err(), Some(KeysError::LoopingLayer));
        let own = format!(r#"{{"layers":[{{"blob":"{d}"}}]}}"#);
        assert_eq!(parse(&own, &[]).err(), Some(KeysError::LoopingLayer));
        let result = format!(r#"{{"records":[{{"digest":"{d}","layers":[{{"layer":0}}]}}]}}"#);
        assert_eq!(parse(&result, &[]).err(), Some(KeysError::Layer { index: 0 }));
        let chain = format!(r#"{{"records":[{{"digest":"{d}","chains":[{{"layers":[-1]}}]}}]}}"#);
        assert_eq!(parse(&chain, &[]).err(), Some(KeysError::Layer { index: -1 }));
    }

    #[test]
    fn depth_is_no_matter() {
        let d = digest("x");
        let count = 20_000;
        let layers: Vec<String> = (0..count).map(|n| format!(r#"{{"blob":"{d}","parent":{}}}"#, n as i64 - 1)).collect();
        let mut records: Vec<String> = (1..count).map(|n| format!(r#"{{"digest":"{d}","inputs":[[{{"link":{n}}}]]}}"#)).collect();
        records.push(format!(r#"{{"digest":"{d}"}}"#));
        let text = format!(r#"{{"layers":[{}],"records":[{}]}}"#, layers.join(","), records.join(","));
        parse(&text, &["x"]).unwrap();
    }
}
