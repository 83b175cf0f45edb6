//! A table of live things by id that others may wait for: running builds, open sessions.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

/// Clones are the same table.
pub struct Board<T>(Arc<Inner<T>>);

struct Inner<T> {
    entries: Mutex<HashMap<String, Arc<T>>>,
    /// How many there are; told each time one comes or goes.
    count: watch::Sender<usize>,
}

impl<T> Clone for Board<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Board<T> {
    fn default() -> Self {
        Self(Arc::new(Inner { entries: Mutex::default(), count: watch::channel(0).0 }))
    }
}

impl<T> Board<T> {
    /// Adds an entry; `None` if the id is taken. The entry leaves the table when the returned place drops.
    pub fn add(&self, id: &str, entry: Arc<T>) -> Option<Place<T>> {
        let mut entries = self.entries();
        if entries.contains_key(id) {
            return None;
        }
        entries.insert(id.to_owned(), entry.clone());
        self.tell(&entries);
        drop(entries);
        Some(self.place(id, entry))
    }

    /// Adds an entry in the place of an older one of the same id, which is returned too.
    pub fn replace(&self, id: &str, entry: Arc<T>) -> (Place<T>, Option<Arc<T>>) {
        let mut entries = self.entries();
        let old = entries.insert(id.to_owned(), entry.clone());
        self.tell(&entries);
        drop(entries);
        (self.place(id, entry), old)
    }

    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.entries().get(id).cloned()
    }

    /// The entry, waiting up to `limit` for it to be added.
    pub async fn wait(&self, id: &str, limit: Duration) -> Option<Arc<T>> {
        self.wait_for(limit, || self.get(id)).await
    }

    /// What `find` gives, which is asked now and after each change, up to `limit`. An entry may have left again before that: whoever must not miss it
    /// looks where it went, too.
    pub async fn wait_for<R>(&self, limit: Duration, find: impl Fn() -> Option<R>) -> Option<R> {
        let mut count = self.count();
        let found = async {
            loop {
                count.mark_unchanged();
                if let Some(found) = find() {
                    return found;
                }
                count.changed().await.expect("the board holds the sender");
            }
        };
        tokio::time::timeout(limit, found).await.ok()
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.entries().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.entries().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are, now and after each change.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }

    /// To be called under the lock, so that the last told is the last counted.
    fn tell(&self, entries: &HashMap<String, Arc<T>>) {
        self.0.count.send_replace(entries.len());
    }

    fn place(&self, id: &str, entry: Arc<T>) -> Place<T> {
        Place { board: self.clone(), id: id.to_owned(), entry }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<T>>> {
        self.0.entries.lock().expect("no holder of this lock panics")
    }
}

/// An entry's place in the table.
pub struct Place<T> {
    board: Board<T>,
    id: String,
    entry: Arc<T>,
}

impl<T> Place<T> {
    pub fn entry(&self) -> &Arc<T> {
        &self.entry
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut entries = self.board.entries();
        if entries.get(&self.id).is_some_and(|current| Arc::ptr_eq(current, &self.entry)) {
            entries.remove(&self.id);
            self.board.tell(&entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_see_an_entry_that_comes_later_and_a_dropped_place_frees_the_id() {
        let board = Board::default();
        let waiting = tokio::spawn({
            let board = board.clone();
            async move { board.wait("a", Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        let place = board.add("a", Arc::new(1)).unwrap();
        assert_eq!(*waiting.await.unwrap().unwrap(), 1);
        assert!(board.add("a", Arc::new(2)).is_none());
        let (newer, old) = board.replace("a", Arc::new(3));
        assert_eq!(*old.unwrap(), 1);
        drop(place);
        assert_eq!(*board.get("a").unwrap(), 3, "an older place does not remove its successor");
        assert_eq!(*board.count().borrow(), 1);
        drop(newer);
        assert!(board.is_empty());
        assert_eq!(*board.count().borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_may_look_where_a_short_lived_entry_went() {
        let (board, gone) = (Board::default(), Board::default());
        let waiting = tokio::spawn({
            let (board, gone) = (board.clone(), gone.clone());
            async move { board.wait_for(Duration::from_secs(10), || board.get("a").or_else(|| gone.get("a"))).await }
        });
        tokio::task::yield_now().await;
        // The waiter does not run before both have happened.
        let place = board.add("a", Arc::new(1)).unwrap();
        let _left = gone.replace("a", place.entry().clone());
        drop(place);
        assert_eq!(*waiting.await.unwrap().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_a_limit() {
        assert!(Board::<u8>::default().wait("a", Duration::from_secs(5)).await.is_none());
    }
}
