//! What builds print, out of memory: what exceeds a budget that all builds share lies in a file until its build is forgotten.
//!
//! A build has one file, which has no name. Each entry is a header of fixed size and the bytes; entries of one vertex lie together in stretches.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, BufMut as _, Bytes};
use content::Scratch;
use fault::{Context as _, Fault, Result};
use oci::Digest;

use super::Event;

/// Bytes of output that all builds together have in memory before some goes to disk.
const BUDGET: usize = 16 << 20;
/// What an event takes beside its bytes.
pub(super) const OVERHEAD: usize = 160;

/// Where builds put what is too much. Clones share the budget.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    content: content::Store,
    held: AtomicUsize,
}

impl Spool {
    pub fn new(content: content::Store) -> Self {
        Self(Arc::new(Inner { content, held: AtomicUsize::new(0) }))
    }

    /// Counts what a build has in memory from now on.
    pub(super) fn hold(&self, bytes: usize) {
        self.0.held.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.held() > BUDGET
    }

    /// A file for one build.
    pub(super) fn open(&self) -> Result<Arc<Pages>> {
        Ok(Arc::new(Pages(self.0.content.scratch().context("no file for a build's output")?)))
    }
}

/// How much of the budget an event takes: only output counts.
pub fn weight(event: &Event) -> usize {
    match event {
        Event::Log { data, .. } => data.len() + OVERHEAD,
        Event::Vertex(_) | Event::Status(_) | Event::Warning(_) => 0,
    }
}

/// The output of one build that is on disk.
pub(super) struct Pages(Scratch);

/// Output of one vertex on disk.
#[derive(Clone)]
pub(super) struct Stretch {
    pub vertex: Digest,
    pages: Arc<Pages>,
    offset: u64,
    pub length: usize,
}

/// One event of a stretch, with the number that it had in its build.
pub(super) struct Entry {
    pub number: u64,
    pub at: SystemTime,
    pub stream: u8,
    pub data: Bytes,
}

/// Writes numbered output; events of other kinds are not taken.
pub(super) fn write(pages: &Arc<Pages>, events: &[(u64, Event)]) -> Result<Vec<Stretch>> {
    let (mut order, mut texts) = (Vec::new(), HashMap::<&Digest, Vec<u8>>::new());
    for (number, event) in events {
        if let Event::Log { vertex, at, stream, data } = event {
            let text = texts.entry(vertex).or_insert_with(|| {
                order.push(vertex);
                Vec::new()
            });
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            text.put_u64_le(*number);
            text.put_u64_le(since.as_secs());
            text.put_u32_le(since.subsec_nanos());
            text.put_u8(*stream);
            text.put_u64_le(data.len() as u64);
            text.put_slice(data);
        }
    }
    let mut offset = pages.0.append(&order.iter().map(|vertex| texts[vertex].as_slice()).collect::<Vec<_>>().concat())?;
    let stretches = order.into_iter().map(|vertex| {
        let stretch = Stretch { vertex: vertex.clone(), pages: pages.clone(), offset, length: texts[vertex].len() };
        offset += stretch.length as u64;
        stretch
    });
    Ok(stretches.collect())
}

impl Stretch {
    /// In the order in which they were written.
    pub fn read(&self) -> Result<Vec<Entry>> {
        let mut bytes = Bytes::from(self.pages.0.read(self.offset, self.length)?);
        let mut entries = Vec::new();
        while bytes.has_remaining() {
            entries.push(entry(&mut bytes).ok_or_else(|| Fault::internal("it is damaged"))?);
        }
        Ok(entries)
    }
}

fn entry(bytes: &mut Bytes) -> Option<Entry> {
    let number = bytes.try_get_u64_le().ok()?;
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(bytes.try_get_u64_le().ok()?))?;
    let at = at.checked_add(Duration::from_nanos(bytes.try_get_u32_le().ok()?.into()))?;
    let (stream, length) = (bytes.try_get_u8().ok()?, usize::try_from(bytes.try_get_u64_le().ok()?).ok()?);
    (bytes.remaining() >= length).then(|| Entry { number, at, stream, data: bytes.split_to(length) })
}
