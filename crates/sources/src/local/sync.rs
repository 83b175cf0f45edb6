//! From a request to a layer: which session, which last version, and what is remembered of the new one.
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fault::{Fault, Kind, Result};
use kv::{Batch, Json, Table};
use layers::{Draft, Layer, LayerId, Properties};
use patterns::Matcher;
use session::{FilesRequest, Group, Session};
use snapshot::MountSpec;
use treehash::Records;

use super::error::LocalError;
use super::hash;
use super::index::Index;
use super::receive::receive;
use super::request::Request;
use super::writer::{Changes, Previous, Synced, Wanted, Writer};
use crate::key::Key;
use crate::store::{Context, Shared};

/// Shared key of a directory to the layer with its last version.
const VERSIONS: Table<str, Json<LayerId>> = Table::new("sources.local");
/// What a version holds, attached to its layer.
const INDEX: &str = "sources.local.index";

pub(crate) fn key(request: &Request, sessions: &Group) -> Result<Key> {
    let session = match request.session.as_str() {
        "" => sessions.all().first().map(|s| s.id().to_owned()).ok_or(LocalError::NoSession)?,
        id => id.to_owned(),
    };
    let (text, digest) = request.key_text(&session);
    Ok(Key::new(&text, digest.as_str(), false))
}

/// Syncs with the session that the op names or, if that has no such directory any more, with any that has.
pub(crate) async fn fetch(shared: &Shared, request: &Request, context: &Context) -> Result<Layer> {
    let named = Some(request.session.as_str()).filter(|id| !id.is_empty()).and_then(|id| context.sessions.find(id));
    let mut candidates: Vec<Arc<dyn Session>> = named.into_iter().collect();
    for session in context.sessions.all() {
        if !candidates.iter().any(|known| known.id() == session.id()) {
            candidates.push(session);
        }
    }
    let mut first: Option<Fault> = None;
    for session in candidates {
        match sync(shared, request, session.as_ref(), context).await {
            Err(fault) if matches!(fault.kind(), Kind::NotFound | Kind::Unimplemented | Kind::Unavailable) => {
                first.get_or_insert(fault);
            }
            other => return other,
        }
    }
    Err(first.unwrap_or_else(|| LocalError::NoSession.into()))
}

async fn sync(shared: &Shared, request: &Request, session: &dyn Session, context: &Context) -> Result<Layer> {
    let shared_key = request.shared_key(session.shared_key());
    let last = last_version(shared, &shared_key)?;
    let files = session.files(FilesRequest {
        name: request.name.clone(),
        include_patterns: request.include_patterns.clone().unwrap_or_default(),
        exclude_patterns: request.exclude_patterns.clone().unwrap_or_default(),
        follow_paths: request.follow_paths.clone().unwrap_or_default(),
    });
    let files = context.cancel.run(files).await?;
    let (begin, draft) = beginner(shared, request);
    let previous = last.as_ref().map(|last| {
        let layer = last.layer.clone();
        let records = move || Records::decode(&layer.meta_get(hash::RECORDS).ok()??).ok();
        Previous { index: last.index.clone(), path: last.path.clone(), records: Box::new(records) }
    });
    let writer = Writer::new(previous, wanted(request)?, begin);
    let row = context.reporter.row(format!("transferring {}:", request.name), "transferring", 0);
    let (changes, last) = match (receive(files, writer, row, &context.cancel).await?, last) {
        (Synced::Unchanged, Some(last)) => return Ok(last.layer),
        (Synced::Unchanged, None) => return Err(Fault::internal("a first transfer made no directory")),
        // All of it was asked for, and is what was here.
        (Synced::Changed(changes), Some(last)) if changes.index.is_like(&last.index) && same_digests(&changes, &last.layer)? => {
            return Ok(last.layer);
        }
        (Synced::Changed(changes), last) => (changes, last),
    };
    let draft = draft.lock().expect("no holder of this lock panics").take();
    let mut draft = draft.ok_or_else(|| Fault::internal("a changed directory has no draft"))?;
    let shared_parts = (shared.layers.clone(), shared.db.clone());
    let (layer, index) = task::blocking(move || {
        let Changes { index, records, linked } = changes;
        if let Some(last) = last {
            draft.took_over(&last.layer, linked.iter().map(|(place, ino)| (*ino, index.entries[*place].path.as_bytes())))?;
        }
        let layer = draft.commit()?;
        // What is attached is asked for only where the layer is, so it may be lost together with it.
        layer.meta_put(INDEX, &index.encode());
        if let Some(records) = records {
            layer.meta_put(hash::RECORDS, &records.encode());
        }
        let mut batch = Batch::new();
        batch.put(&VERSIONS, shared_key.as_str(), &Json(layer.id()));
        shared_parts.1.submit(batch);
        Ok((layer, index))
    })
    .await?;
    remember(shared, layer.id(), &Arc::new(index));
    Ok(layer)
}

/// Whether all content is what a layer has, as far as that was written down.
fn same_digests(changes: &Changes, layer: &Layer) -> Result<bool> {
    let Some(records) = &changes.records else { return Ok(false) };
    Ok(layer.meta_get(hash::RECORDS)?.is_some_and(|known| known == records.encode()))
}

struct Last {
    layer: Layer,
    index: Arc<Index>,
    path: PathBuf,
}

/// The last version under this key, if its layer is still here.
fn last_version(shared: &Shared, shared_key: &str) -> Result<Option<Last>> {
    let Some(Json(id)) = shared.db.get(&VERSIONS, shared_key)? else { return Ok(None) };
    let Some(layer) = shared.layers.get(&id)? else { return Ok(None) };
    let index = match shared.indexes.get(&id) {
        Some(index) => index,
        None => {
            let Some(index) = layer.meta_get(INDEX)?.and_then(|bytes| Index::decode(&bytes)) else { return Ok(None) };
            let index = Arc::new(index);
            remember(shared, id, &index);
            index
        }
    };
    let Some(path) = only_tree(&layer)? else { return Ok(None) };
    Ok(Some(Last { layer, index, path }))
}

/// Reading the index of a large directory costs less than the memory to keep it.
fn remember(shared: &Shared, id: LayerId, index: &Arc<Index>) {
    if index.entries.len() <= 4000 {
        shared.indexes.put(id, index.clone());
    }
}

/// The directory of a layer that consists of one tree.
fn only_tree(layer: &Layer) -> Result<Option<PathBuf>> {
    if layer.stack()?.len() != 1 {
        return Ok(None);
    }
    Ok(match layer.mount_spec()? {
        MountSpec::Bind { path, .. } => Some(path),
        // Topmost first; what may follow is empty.
        MountSpec::Overlay { lowers, .. } => lowers.into_iter().next(),
    })
}

fn wanted(request: &Request) -> Result<Wanted> {
    let exceptions = request.metadata_exceptions.iter().flatten();
    let matcher =
        Matcher::new(exceptions).map_err(|e| Fault::invalid(format!("invalid pattern for local.metadatatransferexclude: {e}")))?;
    Ok(Wanted { everything: request.everything, metadata_only: request.metadata_only.then_some(matcher) })
}

type Slot = Arc<Mutex<Option<Draft>>>;

/// Makes the draft when, and only if, there is something to write.
fn beginner(shared: &Shared, request: &Request) -> (super::writer::Begin, Slot) {
    let slot = Slot::default();
    let (layers, filled) = (shared.layers.clone(), slot.clone());
    let properties = Properties::new(format!("local source for {}", request.name)).of_type("source.local");
    let begin = Box::new(move || {
        let draft = layers.draft(None, properties)?;
        let path = draft.own_files();
        set_root_mode(&path)?;
        *filled.lock().expect("no holder of this lock panics") = Some(draft);
        Ok(path)
    });
    (begin, slot)
}

/// Clients say nothing about the directory itself.
fn set_root_mode(path: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}
