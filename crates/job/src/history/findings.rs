//! What a running build learns about its results, on its way into the record.
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use content::Hold;
use oci::Descriptor;

use super::record::{Record, Results};
use super::{PREDICATE_TYPE, STATEMENT};

/// Of one build. Everything put in here is in the record when the build ends, and its blobs are kept as long as that.
///
/// The seam for provenance: upstream always makes one for the history (SLSA v1, mode max, with usage), whether or not the client asked for an attestation.
/// Whoever makes it calls [`Findings::attest`] once for each result, before the build's run ends; `docker buildx history inspect` then shows it and
/// reads the materials out of it.
#[derive(Default)]
pub struct Findings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    result: Option<Results>,
    results: BTreeMap<String, Results>,
    response: BTreeMap<String, String>,
    holds: Vec<Hold>,
}

impl Findings {
    /// What the exporter at this position of the request made.
    pub fn exported(&self, exporter: usize, descriptor: &Descriptor) {
        let mut inner = self.lock();
        let position = u32::try_from(exporter).unwrap_or(u32::MAX);
        inner.result.get_or_insert_default().exported.insert(position, descriptor.clone());
    }

    /// A statement (the predicate alone, JSON) about a result: the only one, or that of a platform id. Stores it as a blob.
    pub fn attest(&self, content: &content::Store, platform: Option<&str>, predicate_type: &str, predicate: &[u8]) -> content::Result<()> {
        let hold = content.put(predicate)?;
        let mut descriptor = Descriptor::new(STATEMENT, hold.digest().clone(), hold.size());
        descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), predicate_type.to_owned());
        let mut inner = self.lock();
        inner.holds.push(hold);
        let results = match platform {
            None => inner.result.get_or_insert_default(),
            Some(platform) => inner.results.entry(platform.to_owned()).or_default(),
        };
        results.attestations.push(descriptor);
        Ok(())
    }

    /// What the frontend said of the result.
    pub fn metadata(&self, metadata: &BTreeMap<String, Bytes>) {
        let text = |(key, value): (&String, &Bytes)| (key.clone(), String::from_utf8_lossy(value).into_owned());
        self.lock().response.extend(metadata.iter().map(text));
    }

    /// A line of the record's response that is not in the client's.
    pub fn note(&self, key: &str, value: String) {
        self.lock().response.insert(key.to_owned(), value);
    }

    /// Puts everything into the record. What comes back keeps the blobs until they are pinned.
    pub(super) fn take_into(&self, record: &mut Record) -> Vec<Hold> {
        let Inner { result, results, response, holds } = std::mem::take(&mut *self.lock());
        (record.result, record.results) = (result, results);
        record.response.extend(response);
        holds
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }
}
