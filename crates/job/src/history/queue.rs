//! The history as the daemon holds it: what runs, what ended, who listens.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, SystemTime};

use fault::{Fault, Kind, Result};
use task::{Cancel, Drain};
use tokio::sync::{Notify, broadcast, watch};

use super::clean::Retention;
use super::event::{Change, Event, Listening, Query};
use super::filter::{self, Filter};
use super::record::Record;
use super::recording::Recording;
use super::store::Store;
use super::{Encoding, Parts};
use crate::trace::Spans;
use crate::why::Likes;

/// Events that a slow listener may be behind before it misses some.
const QUEUE: usize = 512;
/// So long after a build, what is old by then goes, ...
const CLEANING: Duration = Duration::from_secs(120);
/// ... and without any build as often as this.
const CLEANING_IDLE: Duration = Duration::from_secs(3600);

/// Clones are the same history. It stops cleaning when the last clone is gone.
#[derive(Clone)]
pub struct History(Arc<Inner>);

pub(super) struct Inner {
    pub store: Store,
    pub encoding: Arc<dyn Encoding>,
    retention: Retention,
    pub spans: Spans,
    likes: Likes,
    state: Mutex<State>,
    /// Held by who changes stored records, so that two changes do not undo each other. Taken on blocking threads only, before `state`, which is never
    /// held while the database is asked.
    turn: Mutex<()>,
    /// A build came into the history.
    grown: Arc<Notify>,
    /// What must be done before the daemon may end.
    pub drain: Drain,
    stop: Cancel,
}

struct State {
    active: HashMap<String, Arc<Record>>,
    /// Records that are still to be added to.
    unfinished: HashMap<String, Arc<Finish>>,
    /// How many listen to one build by its reference.
    uses: HashMap<String, usize>,
    /// Deleted while in use.
    deleted: HashSet<String>,
    /// `None` once no listener is served any more.
    events: Option<broadcast::Sender<Event>>,
}

/// Between those who want a record finished and who does that.
pub(super) struct Finish {
    wanted: Cancel,
    done: watch::Sender<bool>,
}

impl Finish {
    /// Resolves when somebody wants the record finished.
    pub async fn wanted(&self) {
        self.wanted.cancelled().await;
    }
}

impl History {
    /// Opens the history and begins to clean it in the background. Must be called within a runtime.
    pub fn open(parts: Parts) -> Self {
        let Parts { db, content, encoding, retention } = parts;
        let state = State {
            active: HashMap::new(),
            unfinished: HashMap::new(),
            uses: HashMap::new(),
            deleted: HashSet::new(),
            events: Some(broadcast::channel(QUEUE).0),
        };
        let inner = Arc::new(Inner {
            likes: Likes::new(db.clone()),
            store: Store::new(db, content),
            encoding,
            retention,
            spans: Spans::default(),
            state: Mutex::new(state),
            turn: Mutex::default(),
            grown: Arc::default(),
            drain: Drain::new(),
            stop: Cancel::new(),
        });
        task::spawn("history cleaning", clean(Arc::downgrade(&inner), inner.grown.clone(), inner.stop.clone()));
        Self(inner)
    }

    /// What is remembered of steps that ran.
    pub fn likes(&self) -> &Likes {
        &self.0.likes
    }

    /// Where spans of other programs go.
    pub fn spans(&self) -> &Spans {
        &self.0.spans
    }

    /// A build begins.
    pub fn begin(&self, record: Record) -> Recording {
        let record = Arc::new(record);
        let mut state = self.0.state();
        state.active.insert(record.reference.clone(), record.clone());
        state.tell(Event::Started(record.clone()));
        drop(state);
        Recording::new(self.0.clone(), record)
    }

    pub async fn listen(&self, query: Query) -> Result<Listening> {
        let reference = query.reference.clone();
        let filter = Filter::parse(&query.filters, SystemTime::now())?;
        let (live, actives, guard) = {
            let mut state = self.0.state();
            if state.deleted.contains(&reference) {
                return Err(Fault::new(Kind::NotFound, format!("ref {reference} is deleted")));
            }
            let guard = (!reference.is_empty()).then(|| state.use_of(&self.0, &reference));
            let live = if query.early_exit { None } else { state.events.as_ref().map(broadcast::Sender::subscribe) };
            let is_asked = |r: &&Arc<Record>| (reference.is_empty() || r.reference == reference) && !state.deleted.contains(&r.reference);
            let mut actives: Vec<Arc<Record>> = state.active.values().filter(is_asked).cloned().collect();
            actives.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.reference.cmp(&b.reference)));
            (live, actives, guard)
        };
        let mut past: VecDeque<Event> = actives.into_iter().map(Event::Started).collect();
        if !query.active_only {
            let store = self.0.store.clone();
            let mut records = task::blocking(move || match query.reference.as_str() {
                "" => store.all(),
                one => Ok(store.load(one)?.into_iter().collect()),
            })
            .await?;
            records.retain(|record| !self.0.state().deleted.contains(&record.reference));
            past.extend(filter::select(records, &filter, query.limit)?.into_iter().map(|record| Event::Complete(Arc::new(record))));
        }
        Ok(Listening { past, live, reference, _use: guard })
    }

    /// `NotFound` where there is nothing to pin. Whatever it changed is visible at once, and durable with the next flush.
    pub async fn update(&self, reference: &str, change: Change) -> Result<()> {
        match change {
            Change::Finalize => {
                self.finish(reference).await;
                Ok(())
            }
            Change::Delete => {
                self.finish(reference).await;
                self.change(reference, |inner, reference| inner.delete(reference)).await
            }
            Change::Pin(pinned) => {
                self.change(reference, move |inner, reference| inner.amend(reference, |record| record.pinned = pinned)).await
            }
        }
    }

    async fn change(&self, reference: &str, work: impl FnOnce(&Inner, &str) -> Result<()> + Send + 'static) -> Result<()> {
        let (inner, reference) = (self.0.clone(), reference.to_owned());
        task::blocking(move || work(&inner, &reference)).await
    }

    /// The record of a build that has ended. Reads the database.
    pub fn record(&self, reference: &str) -> Result<Option<Record>> {
        if self.0.state().deleted.contains(reference) {
            return Ok(None);
        }
        self.0.store.load(reference)
    }

    /// Finishes all records; for the end of the daemon.
    pub async fn settle(&self) {
        let all: Vec<String> = self.0.state().unfinished.keys().cloned().collect();
        for reference in all {
            self.finish(&reference).await;
        }
        self.0.drain.wait().await;
    }

    /// Listeners hear of no more builds, and end.
    pub fn dismiss(&self) {
        self.0.state().events = None;
    }

    async fn finish(&self, reference: &str) {
        let finish = self.0.state().unfinished.get(reference).cloned();
        if let Some(finish) = finish {
            finish.wanted.cancel("asked for");
            let _ = finish.done.subscribe().wait_for(|done| *done).await;
        }
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> Arc<Inner> {
        self.0.clone()
    }

    #[cfg(test)]
    pub(super) fn clean_now(&self) -> Result<()> {
        self.0.clean()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel("the history is closed");
    }
}

impl Inner {
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("no holder of this lock panics")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The build does not run any more.
    pub fn retire(&self, reference: &str) {
        self.state().active.remove(reference);
    }

    /// Tells listeners of a record that was saved for the first time.
    pub fn publish(&self, record: Arc<Record>) {
        let mut state = self.state();
        state.active.remove(&record.reference);
        state.tell(Event::Complete(record));
        self.grown.notify_one();
    }

    /// From here on until [`Inner::finished`] others can ask for the record to be finished.
    pub fn unfinished(&self, reference: &str) -> Arc<Finish> {
        let finish = Arc::new(Finish { wanted: Cancel::new(), done: watch::channel(false).0 });
        self.state().unfinished.insert(reference.to_owned(), finish.clone());
        finish
    }

    pub fn finished(&self, reference: &str, finish: &Finish) {
        self.state().unfinished.remove(reference);
        finish.done.send_replace(true);
    }

    /// Changes a stored record.
    pub fn amend(&self, reference: &str, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _turn = self.turn();
        let missing = || Fault::new(Kind::NotFound, format!("failed to retrieve ref {reference}: no such build in the history"));
        let is_deleted = self.state().deleted.contains(reference);
        let mut record = self.store.load(reference)?.filter(|_| !is_deleted).ok_or_else(missing)?;
        change(&mut record);
        record.generation += 1;
        self.store.save(&record)?;
        self.state().tell(Event::Complete(Arc::new(record)));
        Ok(())
    }

    /// One that is in use goes with the last who uses it.
    fn delete(&self, reference: &str) -> Result<()> {
        let _turn = self.turn();
        {
            let mut state = self.state();
            state.deleted.insert(reference.to_owned());
            if state.uses.contains_key(reference) {
                return Ok(());
            }
        }
        self.remove(reference)
    }

    /// Removes a deleted record that nobody uses any more.
    fn remove_unused(&self, reference: &str) -> Result<()> {
        let _turn = self.turn();
        let is_unused = {
            let state = self.state();
            state.deleted.contains(reference) && !state.uses.contains_key(reference)
        };
        if is_unused { self.remove(reference) } else { Ok(()) }
    }

    /// To be called in turn, for a record that counts as deleted.
    fn remove(&self, reference: &str) -> Result<()> {
        let removed = self.store.remove(reference);
        let mut state = self.state();
        state.deleted.remove(reference);
        if removed.is_ok() {
            state.tell(Event::Deleted { reference: reference.to_owned() });
        }
        removed
    }

    fn clean(&self) -> Result<()> {
        for reference in self.retention.expired(self.store.all()?, SystemTime::now()) {
            tracing::debug!(reference, "a build leaves the history");
            self.delete(&reference)?;
        }
        Ok(())
    }

    /// What a crash or a lost disk took blobs from is of no use.
    fn drop_torn(&self) -> Result<()> {
        for record in self.store.all()? {
            if !self.store.is_whole(&record) {
                tracing::warn!(reference = record.reference, "blobs of a build's record are gone; dropping it");
                self.delete(&record.reference)?;
            }
        }
        Ok(())
    }
}

impl State {
    fn tell(&self, event: Event) {
        // Fails if nobody listens.
        let _ = self.events.as_ref().map(|events| events.send(event));
    }

    fn use_of(&mut self, inner: &Arc<Inner>, reference: &str) -> Use {
        *self.uses.entry(reference.to_owned()).or_default() += 1;
        Use { history: inner.clone(), reference: reference.to_owned() }
    }
}

/// Keeps a record while somebody listens to it by name.
pub(super) struct Use {
    history: Arc<Inner>,
    reference: String,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.history.state();
        let Some(count) = state.uses.get_mut(&self.reference) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.uses.remove(&self.reference);
        if !state.deleted.contains(&self.reference) {
            return;
        }
        drop(state);
        let (history, reference) = (self.history.clone(), std::mem::take(&mut self.reference));
        self.history.drain.spawn("end of a deleted build", async move {
            let name = reference.clone();
            if let Err(fault) = task::blocking(move || history.remove_unused(&reference)).await {
                tracing::error!(%fault, reference = name, "a deleted build stays in the history");
            }
        });
    }
}

async fn clean(inner: Weak<Inner>, grown: Arc<Notify>, stop: Cancel) {
    let mut first = true;
    loop {
        let Some(history) = inner.upgrade() else { return };
        let cleaned = task::blocking(move || {
            if std::mem::take(&mut first) {
                history.drop_torn()?;
            }
            history.spans.forget_old();
            history.likes.clean()?;
            history.clean()
        });
        if let Err(fault) = cleaned.await {
            tracing::warn!(%fault, "could not clean the build history");
        }
        first = false;
        let next = async {
            tokio::select! {
                () = grown.notified() => tokio::time::sleep(CLEANING).await,
                () = tokio::time::sleep(CLEANING_IDLE) => {}
            }
        };
        tokio::select! {
            () = next => {}
            () = stop.cancelled() => return,
        }
    }
}
