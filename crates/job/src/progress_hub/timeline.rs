//! A build's events in order, of which output may lie on disk.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use fault::Fault;
use oci::Digest;

use super::Event;
use super::pages::{Entry, Stretch, weight};

/// Output of one vertex and stream that came within so long is one event, with the time of its first bytes.
const MERGED_WITHIN: Duration = Duration::from_millis(20);
/// Bytes of an event that output is added to.
const MERGED_SIZE: usize = 32 << 10;

/// Bytes of output that watchers are given at a time, and that are written at a time.
pub(super) const PART: usize = 1 << 20;
/// With less than that in memory a build is not looked at for something to write.
pub(super) const WORTH_WRITING: usize = 256 << 10;

/// The events in order of their numbers. An event that a later one replaced leaves a hole; holes are squeezed out now and then.
#[derive(Default)]
pub(super) struct Timeline {
    events: Vec<(u64, Option<Kept>)>,
    /// The event that more output of the vertex may be added to, where there is one.
    growing: HashMap<Digest, u64>,
    holes: usize,
    next: u64,
    /// How much output is in memory, as [`weight`] counts.
    held: usize,
    /// Output before this number is on disk.
    written: u64,
}

enum Kept {
    Event(Event),
    Growing(Output),
    /// Events up to this number, on disk.
    Written(Stretch),
    /// Output of an earlier build, under the name that this one has for the vertex, and seen when this one came.
    Inherited(Arc<Legacy>),
}

/// Output that nobody has seen yet.
struct Output {
    vertex: Digest,
    at: SystemTime,
    stream: u8,
    data: BytesMut,
}

pub(super) struct Legacy {
    vertex: Digest,
    came: SystemTime,
    stretch: Stretch,
}

/// What a build that comes later is given of a vertex's output.
pub(super) enum Heirloom {
    Event(Event),
    Written(Stretch),
}

impl Timeline {
    /// The number that the next event gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn held(&self) -> usize {
        self.held
    }

    /// What others report meanwhile does not keep output of one vertex apart: it is one event, at the place of its beginning.
    pub fn log(&mut self, vertex: Digest, now: SystemTime, stream: u8, data: &[u8]) {
        let growing = self.growing.get(&vertex).and_then(|number| self.find(*number));
        if let Some(at) = growing
            && let Some(Kept::Growing(output)) = &mut self.events[at].1
        {
            if output.takes(stream, data, now) {
                self.held += data.len();
                return output.data.extend_from_slice(data);
            }
            self.settle(at);
        }
        self.growing.insert(vertex.clone(), self.next);
        self.keep(Kept::Growing(Output { vertex, at: now, stream, data: data.into() }));
    }

    pub fn push(&mut self, event: Event) {
        let vertex = match &event {
            Event::Vertex(state) => &state.vertex.digest,
            Event::Status(row) => &row.vertex,
            Event::Log { vertex, .. } => vertex,
            Event::Warning(warning) => &warning.vertex,
        };
        let vertex = vertex.clone();
        self.settle_output_of(&vertex);
        self.keep(Kept::Event(event));
    }

    /// Another event has taken the place of this one, which is no output.
    pub fn remove(&mut self, number: u64) {
        if let Some(at) = self.find(number) {
            self.holes += self.events[at].1.take().iter().count();
            self.squeeze();
        }
    }

    /// Events from a number on, and the number after them: all that there are, unless that is much output.
    pub fn part(&mut self, from: u64) -> (Part, u64) {
        self.settle_all();
        let (mut pieces, mut size, mut next) = (Vec::new(), 0, from);
        let start = self.events.partition_point(|(number, _)| *number < from);
        for (number, kept) in &self.events[start..] {
            // Stretches that were written at once have the same number.
            if size >= PART && *number >= next {
                return (Part { pieces, from }, next);
            }
            let piece = match kept {
                None => continue,
                Some(Kept::Event(event)) => Piece::Event(event.clone()),
                Some(Kept::Written(stretch)) => Piece::Written(stretch.clone()),
                Some(Kept::Inherited(legacy)) => Piece::Inherited(legacy.clone()),
                Some(Kept::Growing(_)) => unreachable!("all have settled"),
            };
            size += piece.weight();
            pieces.push((*number, piece));
            next = number + 1;
        }
        (Part { pieces, from }, self.next)
    }

    /// The oldest output in memory that nothing else comes between. `None`: there is less in memory than is worth it.
    pub fn unwritten(&mut self, least: usize) -> Option<Vec<(u64, Event)>> {
        if self.held < least {
            return None;
        }
        self.settle_all();
        let log = |(number, kept): &(u64, Option<Kept>)| match kept {
            Some(Kept::Event(event @ Event::Log { .. })) => Some((*number, event.clone())),
            _ => None,
        };
        let from = self.events.partition_point(|(number, _)| *number < self.written);
        let start = from + self.events[from..].iter().position(|event| log(event).is_some())?;
        let mut size = 0;
        let small = |(_, event): &(u64, Event)| {
            let fits = size < PART;
            size += weight(event);
            fits
        };
        Some(self.events[start..].iter().map_while(log).take_while(small).collect())
    }

    /// Lets go of output that was written. Nothing has come between it meanwhile, as new events come last.
    pub fn put_apart(&mut self, written: &[(u64, Event)], stretches: Vec<Stretch>) {
        let (Some((first, _)), Some((last, _))) = (written.first(), written.last()) else { return };
        let start = self.events.partition_point(|(number, _)| number < first);
        self.holes += written.len() - stretches.len();
        let mut stretches = stretches.into_iter().map(Kept::Written);
        for slot in &mut self.events[start..start + written.len()] {
            *slot = (*last, stretches.next());
        }
        self.written = last + 1;
        self.held -= written.iter().map(|(_, event)| weight(event)).sum::<usize>();
        self.squeeze();
    }

    /// A vertex's output so far.
    pub fn output_of(&mut self, vertex: &Digest) -> Vec<Heirloom> {
        self.settle_all();
        let output = self.events.iter().filter_map(|(_, kept)| match kept {
            Some(Kept::Event(event @ Event::Log { vertex: of, .. })) if of == vertex => Some(Heirloom::Event(event.clone())),
            Some(Kept::Written(stretch)) if stretch.vertex == *vertex => Some(Heirloom::Written(stretch.clone())),
            Some(Kept::Inherited(legacy)) if legacy.vertex == *vertex => Some(Heirloom::Written(legacy.stretch.clone())),
            _ => None,
        });
        output.collect()
    }

    /// Takes over what a build that was there earlier has of a vertex.
    pub fn inherit(&mut self, vertex: &Digest, heirlooms: Vec<Heirloom>, now: SystemTime) {
        for heirloom in heirlooms {
            match heirloom {
                Heirloom::Event(Event::Log { stream, data, .. }) => {
                    self.push(Event::Log { vertex: vertex.clone(), at: now, stream, data });
                }
                Heirloom::Event(_) => unreachable!("output is a log"),
                Heirloom::Written(stretch) => {
                    self.settle_output_of(vertex);
                    self.keep(Kept::Inherited(Arc::new(Legacy { vertex: vertex.clone(), came: now, stretch })));
                }
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    fn keep(&mut self, kept: Kept) {
        self.held += match &kept {
            Kept::Event(event) => weight(event),
            Kept::Growing(output) => output.weight(),
            Kept::Written(_) | Kept::Inherited(_) => 0,
        };
        self.events.push((self.next, Some(kept)));
        self.next += 1;
    }

    /// To what is here nothing is added any more.
    fn settle(&mut self, at: usize) {
        let kept = &mut self.events[at].1;
        *kept = kept.take().map(|kept| match kept {
            Kept::Growing(output) => Kept::Event(output.into_event()),
            settled => settled,
        });
    }

    fn settle_output_of(&mut self, vertex: &Digest) {
        if let Some(at) = self.growing.remove(vertex).and_then(|number| self.find(number)) {
            self.settle(at);
        }
    }

    fn settle_all(&mut self) {
        for number in std::mem::take(&mut self.growing).into_values() {
            if let Some(at) = self.find(number) {
                self.settle(at);
            }
        }
    }

    fn squeeze(&mut self) {
        if self.holes > 1024 && self.holes * 2 > self.events.len() {
            self.events.retain(|(_, kept)| kept.is_some());
            self.holes = 0;
        }
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.events.binary_search_by_key(&number, |(n, _)| *n).ok()
    }
}

impl Output {
    fn takes(&self, stream: u8, data: &[u8], now: SystemTime) -> bool {
        let is_soon = now.duration_since(self.at).is_ok_and(|age| age < MERGED_WITHIN);
        self.stream == stream && is_soon && self.data.len() + data.len() <= MERGED_SIZE
    }

    fn weight(&self) -> usize {
        super::pages::OVERHEAD + self.data.len()
    }

    /// Leaves no memory behind that is not used.
    fn into_event(self) -> Event {
        let Self { vertex, at, stream, data } = self;
        let is_tight = data.capacity() - data.len() <= data.len() / 8;
        Event::Log { vertex, at, stream, data: if is_tight { data.freeze() } else { Bytes::copy_from_slice(&data) } }
    }
}

/// What a watcher is given at a time.
pub(super) struct Part {
    pieces: Vec<(u64, Piece)>,
    /// Of what is on disk, only events from this number on.
    from: u64,
}

enum Piece {
    Event(Event),
    Written(Stretch),
    Inherited(Arc<Legacy>),
}

impl Part {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn is_in_memory(&self) -> bool {
        self.pieces.iter().all(|(_, piece)| matches!(piece, Piece::Event(_)))
    }

    /// The events; reads the disk. What cannot be read is replaced by a line that says so.
    pub fn read(self) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.pieces.len());
        for (number, piece) in self.pieces {
            match piece {
                Piece::Event(event) => events.push((number, event)),
                Piece::Written(stretch) => match stretch.read() {
                    Ok(entries) => {
                        let unseen = entries.into_iter().filter(|entry| entry.number >= self.from);
                        events.extend(unseen.map(|entry| (entry.number, entry.into_event(&stretch.vertex))));
                    }
                    Err(fault) => events.push((number, lost(&stretch.vertex, stretch.length, &fault))),
                },
                Piece::Inherited(legacy) => match legacy.stretch.read() {
                    Ok(entries) => {
                        let since = entries.into_iter().map(|entry| Entry { at: entry.at.max(legacy.came), ..entry });
                        events.extend(since.map(|entry| (number, entry.into_event(&legacy.vertex))));
                    }
                    Err(fault) => events.push((number, lost(&legacy.vertex, legacy.stretch.length, &fault))),
                },
            }
        }
        // Stretches of several vertices were written at once.
        events.sort_by_key(|(number, _)| *number);
        events.into_iter().map(|(_, event)| event).collect()
    }
}

fn lost(vertex: &Digest, length: usize, fault: &Fault) -> Event {
    tracing::warn!(%fault, %vertex, "output of a step cannot be read back");
    let data = format!("\n[{length} bytes of output are lost: {fault}]\n").into();
    Event::Log { vertex: vertex.clone(), at: SystemTime::now(), stream: 2, data }
}

impl Entry {
    fn into_event(self, vertex: &Digest) -> Event {
        Event::Log { vertex: vertex.clone(), at: self.at, stream: self.stream, data: self.data }
    }
}

impl Piece {
    fn weight(&self) -> usize {
        match self {
            Self::Event(event) => weight(event),
            Self::Written(stretch) => stretch.length,
            Self::Inherited(legacy) => legacy.stretch.length,
        }
    }
}
