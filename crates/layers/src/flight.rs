//! Work that several callers want is done once. It is cancelled when nobody waits for it any more.
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use fault::Fault;
use progress::{Reporter, Sink, Update};
use task::Cancel;
use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Flights<T>(Arc<Mutex<HashMap<String, Flight<T>>>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

struct Flight<T> {
    number: u64,
    cancel: Cancel,
    waiters: usize,
    fan: Arc<Fan>,
    outcome: watch::Receiver<Option<Result<T, Fault>>>,
}

enum Entry<T> {
    Joined(Seat<T>),
    /// One that nobody waited for is still ending.
    Ending(watch::Receiver<Option<Result<T, Fault>>>),
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the work called `key` or starts it. `work` gets its own cancellation, and a reporter that shows its rows to all who wait.
    pub async fn run<W, F>(&self, key: &str, cancel: &Cancel, reporter: &Reporter, work: W) -> Result<T, Fault>
    where
        W: FnOnce(Cancel, Reporter) -> F,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let mut work = Some(work);
        loop {
            match self.enter(key, reporter, &mut work) {
                Entry::Joined(mut seat) => return cancel.run(seat.wait()).await,
                Entry::Ending(mut outcome) => {
                    let ended = async {
                        // An error says that the sender is gone: ended as well.
                        let _ = outcome.wait_for(Option::is_some).await;
                        Ok::<_, Fault>(())
                    };
                    cancel.run(ended).await?;
                }
            }
        }
    }

    fn enter<W, F>(&self, key: &str, reporter: &Reporter, work: &mut Option<W>) -> Entry<T>
    where
        W: FnOnce(Cancel, Reporter) -> F,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let mut flights = self.0.lock().expect("no holder of the lock panics");
        if let Some(flight) = flights.get_mut(key) {
            if flight.cancel.is_cancelled() {
                return Entry::Ending(flight.outcome.clone());
            }
            flight.waiters += 1;
            flight.fan.join(reporter);
            return Entry::Joined(self.seat(key, flight));
        }
        let work = work.take().expect("work is started at most once: after that its flight is joined");
        let (cancel, fan) = (Cancel::new(), Arc::new(Fan::default()));
        fan.join(reporter);
        let (sender, outcome) = watch::channel(None);
        let number = next_number();
        let flight = Flight { number, cancel: cancel.clone(), waiters: 1, fan: fan.clone(), outcome };
        let seat = self.seat(key, &flight);
        flights.insert(key.to_owned(), flight);
        let landing = Landing { flights: self.clone(), key: key.to_owned(), number, sender };
        let running = work(cancel.clone(), Reporter::new(fan, reporter.vertex().clone()));
        task::spawn("layer", async move { landing.land(running.await) });
        Entry::Joined(seat)
    }

    fn seat(&self, key: &str, flight: &Flight<T>) -> Seat<T> {
        Seat { flights: self.clone(), key: key.to_owned(), number: flight.number, outcome: flight.outcome.clone() }
    }
}

fn next_number() -> u64 {
    static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Ends a flight also when the work panics.
struct Landing<T> {
    flights: Flights<T>,
    key: String,
    number: u64,
    sender: watch::Sender<Option<Result<T, Fault>>>,
}

impl<T> Landing<T> {
    fn land(self, outcome: Result<T, Fault>) {
        self.sender.send_replace(Some(outcome));
    }
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock().expect("no holder of the lock panics");
        if flights.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.key);
        }
    }
}

/// One who waits.
struct Seat<T> {
    flights: Flights<T>,
    key: String,
    number: u64,
    outcome: watch::Receiver<Option<Result<T, Fault>>>,
}

impl<T: Clone> Seat<T> {
    async fn wait(&mut self) -> Result<T, Fault> {
        let ended = self.outcome.wait_for(Option::is_some).await;
        let outcome = ended.map_err(|_| Fault::internal("shared work ended without a result"))?;
        outcome.clone().expect("waited for a value")
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock().expect("no holder of the lock panics");
        let Some(flight) = flights.get_mut(&self.key).filter(|flight| flight.number == self.number) else { return };
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.cancel.cancel("nobody waits for this layer any more");
        }
    }
}

/// Shows the rows of one piece of work to all who wait for it, also those of before they came.
#[derive(Default)]
struct Fan(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    watchers: Vec<Reporter>,
    rows: Vec<Update>,
}

impl Fan {
    fn join(&self, reporter: &Reporter) {
        let mut shown = self.0.lock().expect("no holder of the lock panics");
        for row in &shown.rows {
            reporter.sink().emit(for_vertex(row, reporter));
        }
        shown.watchers.push(reporter.clone());
    }
}

impl Sink for Fan {
    fn emit(&self, update: Update) {
        let mut shown = self.0.lock().expect("no holder of the lock panics");
        for watcher in &shown.watchers {
            watcher.sink().emit(for_vertex(&update, watcher));
        }
        if let Update::Status { id: new, .. } = &update {
            shown.rows.retain(|row| !matches!(row, Update::Status { id, .. } if id == new));
            shown.rows.push(update);
        }
    }
}

fn for_vertex(update: &Update, reporter: &Reporter) -> Update {
    let mut update = update.clone();
    match &mut update {
        Update::Started { vertex } | Update::Completed { vertex, .. } => *vertex = reporter.vertex().clone(),
        Update::Status { vertex, .. } | Update::Log { vertex, .. } => *vertex = reporter.vertex().clone(),
        Update::Warning(warning) => warning.vertex = reporter.vertex().clone(),
        Update::Announced(_) => {}
    }
    update
}
