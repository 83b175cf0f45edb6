//! A file sync without a store around it.
use std::path::Path;
use std::sync::Arc;

use progress::Reporter;
use session::FileStream;
use task::Cancel;

use super::receive;
use super::writer::{Previous, Synced, Wanted, Writer};
use crate::local::Index;

/// Receives a directory into `to`, which must not exist. With `after`, what was received there and its index, as a change of that. Gives the new index
/// in its durable form; `None` where nothing changed.
pub async fn receive(stream: Box<dyn FileStream>, to: &Path, after: Option<(&Path, &[u8])>) -> fault::Result<Option<Vec<u8>>> {
    let previous = after.and_then(|(path, index)| {
        let index = Arc::new(Index::decode(index)?);
        Some(Previous { index, path: path.to_owned(), records: Box::new(|| None) })
    });
    let to = to.to_owned();
    let begin = Box::new(move || Ok(std::fs::create_dir(&to).map(|()| to)?));
    let writer = Writer::new(previous, Wanted { everything: false, metadata_only: None }, begin);
    let row = Reporter::silent().row("transferring", "transferring", 0);
    Ok(match receive::receive(stream, writer, row, &Cancel::new()).await? {
        Synced::Unchanged => None,
        Synced::Changed(changes) => Some(changes.index.encode()),
    })
}
