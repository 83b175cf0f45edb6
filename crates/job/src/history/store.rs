//! Records and their blobs on disk.
use std::collections::BTreeSet;

use content::{Hold, Ingest};
use fault::Result;
use kv::{Batch, Db, Json, Table};
use oci::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use super::record::Record;

const RECORDS: Table<str, Json<Stored>> = Table::new("history.records");

/// Documents larger than this are not looked into for what they name.
const LARGEST_DOCUMENT: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stored {
    record: Record,
    /// What is pinned for it.
    pins: BTreeSet<Digest>,
}

#[derive(Clone)]
pub struct Store {
    db: Db,
    content: content::Store,
}

impl Store {
    pub fn new(db: Db, content: content::Store) -> Self {
        Self { db, content }
    }

    /// A blob, and the hold that keeps it until a record that names it is saved.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<(Descriptor, Hold)> {
        let hold = self.content.put(bytes)?;
        Ok((Descriptor::new(media_type, hold.digest().clone(), hold.size()), hold))
    }

    /// A blob that is written bit by bit.
    pub fn large_blob(&self) -> Result<Ingest> {
        Ok(self.content.ingest_once()?)
    }

    /// Adds or replaces a record, and pins what it names. Durable with the next flush.
    pub fn save(&self, record: &Record) -> Result<()> {
        let mut pins: BTreeSet<Digest> = record.own_blobs().map(|d| d.digest.clone()).collect();
        record.exported().for_each(|digest| self.add_document(digest, &mut pins));
        let owner = owner(&record.reference);
        let before = self.db.get(&RECORDS, &record.reference)?.map(|Json(stored)| stored.pins).unwrap_or_default();
        let mut batch = Batch::new();
        pins.difference(&before).for_each(|digest| self.content.pin(&mut batch, digest, &owner));
        before.difference(&pins).for_each(|digest| self.content.unpin(&mut batch, digest, &owner));
        batch.put(&RECORDS, record.reference.as_str(), &Json(Stored { record: record.clone(), pins }));
        self.db.submit(batch);
        Ok(())
    }

    pub fn load(&self, reference: &str) -> Result<Option<Record>> {
        Ok(self.db.get(&RECORDS, reference)?.map(|Json(stored)| stored.record))
    }

    /// All records, by reference.
    pub fn all(&self) -> Result<Vec<Record>> {
        Ok(self.db.read()?.all(&RECORDS)?.into_iter().map(|(_, Json(stored))| stored.record).collect())
    }

    /// Removes a record and lets its blobs go; those that nothing else needs are freed at once.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let Some(Json(stored)) = self.db.get(&RECORDS, reference)? else { return Ok(()) };
        let owner = owner(reference);
        let mut batch = Batch::new();
        batch.delete(&RECORDS, reference);
        stored.pins.iter().for_each(|digest| self.content.unpin(&mut batch, digest, &owner));
        self.db.submit(batch);
        for blob in stored.record.own_blobs() {
            if !self.content.is_pinned(&blob.digest)? {
                // Held by a reader, or gone already: the sweep is for those.
                let _ = self.content.remove(&blob.digest);
            }
        }
        Ok(())
    }

    /// Whether all blobs are there that make the record worth keeping.
    pub fn is_whole(&self, record: &Record) -> bool {
        record.own_blobs().all(|blob| matches!(self.content.has(&blob.digest), Ok(Some(_))))
    }

    /// A document of an image and those that it names, but no layers: enough to look at the result later. What is not here is left out.
    fn add_document(&self, digest: &Digest, pins: &mut BTreeSet<Digest>) {
        let mut open = vec![digest.clone()];
        while let Some(digest) = open.pop() {
            let Ok(Some(size)) = self.content.has(&digest) else { continue };
            if !pins.insert(digest.clone()) || size > LARGEST_DOCUMENT {
                continue;
            }
            let named = self.content.read(&digest).ok().and_then(|bytes| serde_json::from_slice::<Named>(&bytes).ok()).unwrap_or_default();
            let statements = named.layers.into_iter().filter(|layer| layer.media_type == super::STATEMENT);
            open.extend(named.manifests.into_iter().chain(named.config).chain(statements).map(|d| d.digest));
        }
    }
}

/// What an index or a manifest names. (A config names none of these.)
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    manifests: Vec<Descriptor>,
    #[serde(deserialize_with = "descriptor_or_else")]
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

/// An image's config has a member of this name too, of another shape.
fn descriptor_or_else<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Descriptor>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

fn owner(reference: &str) -> String {
    format!("history/{reference}")
}
