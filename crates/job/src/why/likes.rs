//! The prints that builds leave, by the place that likes share.
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use kv::{Batch, Db, Json, Table};

use super::print::Print;

const PRINTS: Table<str, Json<Vec<Print>>> = Table::new("why.prints");
/// When a place was last written to, in Unix seconds.
const USED: Table<str, u64> = Table::new("why.used");

/// Prints in one place, and their bytes.
const MOST_PRINTS: usize = 64;
const MOST_BYTES: usize = 96 << 10;
/// Places in all; what was not used for longest goes.
const MOST_PLACES: usize = 500;

/// Clones are the same.
#[derive(Clone)]
pub struct Likes(Db);

impl Likes {
    pub fn new(db: Db) -> Self {
        Self(db)
    }

    /// The newest last. What cannot be read is as if it were not there.
    pub fn at(&self, place: &str) -> Vec<Print> {
        let found = self.0.get(&PRINTS, place).unwrap_or_else(|error| {
            tracing::debug!(%error, "what is remembered of earlier steps cannot be read");
            None
        });
        found.map(|Json(prints)| prints).unwrap_or_default()
    }

    pub fn add(&self, prints: impl IntoIterator<Item = (String, Print)>) {
        let mut places: BTreeMap<String, Vec<Print>> = BTreeMap::new();
        for (place, print) in prints {
            let known = places.entry(place).or_insert_with_key(|place| self.at(place));
            known.retain(|other| !other.is_same(&print));
            known.push(print);
        }
        if places.is_empty() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut batch = Batch::new();
        for (place, prints) in places {
            batch.put(&PRINTS, place.as_str(), &Json(bounded(prints)));
            batch.put(&USED, place.as_str(), &now);
        }
        self.0.submit(batch);
    }

    /// Forgets the places that were not used for longest.
    pub fn clean(&self) -> kv::Result<()> {
        let mut places = self.0.read()?.all(&USED)?;
        if places.len() <= MOST_PLACES {
            return Ok(());
        }
        places.sort_by_key(|(_, used)| *used);
        let mut batch = Batch::new();
        for (place, _) in &places[..places.len() - MOST_PLACES] {
            batch.delete(&PRINTS, place.as_str());
            batch.delete(&USED, place.as_str());
        }
        self.0.submit(batch);
        Ok(())
    }
}

/// The newest that there is room for.
fn bounded(mut prints: Vec<Print>) -> Vec<Print> {
    let mut bytes = 0;
    let fits = |print: &Print| {
        bytes += serde_json::to_vec(print).map_or(MOST_BYTES, |text| text.len());
        bytes <= MOST_BYTES
    };
    let kept = prints.iter().rev().take(MOST_PRINTS).take_while({
        let mut fits = fits;
        move |print| fits(print)
    });
    let kept = kept.count();
    prints.split_off(prints.len() - kept)
}
