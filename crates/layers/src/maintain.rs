//! What happens beside the builds: trees without layers go, the trash is emptied, the durability mark moves, uses are written down, sizes
//! are measured, limits are kept. Nothing of it wakes up by the clock while nothing happens.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snapshot::TreeId;
use task::Cancel;
use tokio::sync::Notify;

use crate::error::Result;
use crate::prune::free_space;
use crate::record::TREES;
use crate::store::Layers;
use crate::{LayerId, Rule};

/// Upkeep comes so long after layers were made, used or deleted, and no more often.
const TICK: Duration = Duration::from_secs(5);
/// No more often than this the file system is synced, which costs every writer.
const SYNC_EVERY: Duration = Duration::from_secs(30);
/// How often limits are looked at while layers are in use.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Sizes that nobody waits for are measured together.
const MEASURE_AFTER: Duration = Duration::from_millis(200);
/// How often the growth of running steps is looked at where there is a ceiling.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// The rules are applied so long after a build, ...
const COLLECT_AFTER: Duration = Duration::from_secs(1);
/// ... and no more often than this, ...
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// ... unless the disk is fuller than they allow.
const COLLECT_PRESSED: Duration = Duration::from_secs(10);

/// New layers are compared with others so long at a time, ...
const COMPARE_FOR: Duration = Duration::from_millis(300);
/// ... and no sooner than this after the last time, ...
const COMPARE_AFTER: Duration = Duration::from_secs(1);
/// ... once no build has used layers for so long, because it takes a core from those that do, ...
const QUIET: Duration = Duration::from_secs(5);
/// ... but on a machine that is never quiet after so long at the latest.
const COMPARE_AT_LATEST: Duration = Duration::from_secs(120);

/// What is to be kept, and who wants to know what is not.
pub struct Housekeeping {
    /// Applied in this order after builds, and while they run.
    pub rules: Vec<Rule>,
    /// Hears of each layer that goes.
    pub deleted: Arc<dyn Fn(&LayerId) + Send + Sync>,
}

/// Whether the rules are to be applied.
#[derive(Default)]
pub(crate) struct Due {
    soon: AtomicBool,
    now: AtomicBool,
}

/// Told of everything that leaves something to keep up.
#[derive(Default)]
pub(crate) struct Upkeep(Notify);

impl Upkeep {
    pub fn is_needed(&self) {
        self.0.notify_one();
    }
}

impl Layers {
    /// Runs until cancelled; the daemon spawns it once. Nothing that it does is needed for an answer.
    pub async fn maintain(&self, cancel: &Cancel) {
        self.attempt("reconcile", |home| Ok(home.reconcile().map(|_| ())?)).await;
        self.attempt("take blobs back", |home| Ok(home.take_blobs_back()?)).await;
        let keep_up = async {
            // Earlier processes may have left something to do, too.
            self.0.upkeep.is_needed();
            let (mut synced_at, mut unsynced) = (Instant::now(), false);
            loop {
                tokio::select! {
                    () = self.0.upkeep.0.notified() => {
                        unsynced = true;
                        tokio::time::sleep(TICK).await;
                        self.attempt("empty the trash", |home| Ok(home.trees().empty_trash().map(|_| ()).map_err(crate::Error::from)?)).await;
                        self.attempt("write down uses", |home| Ok(home.write_uses()?)).await;
                    }
                    () = tokio::time::sleep((synced_at + SYNC_EVERY).saturating_duration_since(Instant::now())), if unsynced => {
                        if let Err(error) = self.sync().await {
                            tracing::warn!(%error, "could not sync the layers");
                        }
                        (synced_at, unsynced) = (Instant::now(), false);
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = keep_up => {}
        }
        self.attempt("write down uses", |home| Ok(home.write_uses()?)).await;
    }

    /// Keeps the account and the limits until cancelled; the daemon spawns it once.
    pub async fn keep_house(&self, housekeeping: Housekeeping, cancel: &Cancel) {
        let Housekeeping { rules, deleted } = housekeeping;
        let rules = Arc::new(rules);
        self.attempt("add up the layers", |home| Ok(home.open_account()?)).await;
        let mut collect_at = Instant::now() + COLLECT_AFTER;
        self.0.due.soon.store(true, Ordering::Release);
        loop {
            let wait = self.until_next_look(collect_at);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.0.account.wake.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            if self.has_ceiling() {
                let deleted = deleted.clone();
                self.attempt("keep below the ceiling", move |home| Ok(home.enforce_ceiling(&*deleted)?)).await;
            } else {
                tokio::time::sleep(MEASURE_AFTER).await;
                self.attempt("measure layers", |home| Ok(home.measure_queued().map(|_| ())?)).await;
            }
            if self.0.due.now.swap(false, Ordering::AcqRel) {
                self.attempt("empty the trash", |home| Ok(home.trees().empty_trash().map(|_| ()).map_err(crate::Error::from)?)).await;
                collect_at = Instant::now();
            }
            if Instant::now() < collect_at || rules.is_empty() {
                continue;
            }
            let pressed = self.is_pressed(&rules);
            if self.0.due.soon.swap(false, Ordering::AcqRel) || pressed {
                let (rules, deleted) = (rules.clone(), deleted.clone());
                self.attempt("collect garbage", move |home| home.collect(&rules, &*deleted)).await;
                collect_at = Instant::now() + if pressed { COLLECT_PRESSED } else { COLLECT_EVERY };
            }
        }
    }

    /// How long nothing but a call can make work for [`Layers::keep_house`]; `None`: nothing else can.
    fn until_next_look(&self, collect_at: Instant) -> Option<Duration> {
        if self.is_watched() {
            return Some(WATCH_EVERY);
        }
        // Steps of running builds hold layers, and may fill the disk.
        if !self.live().is_empty() {
            return Some(LOOK_EVERY);
        }
        self.0.due.soon.load(Ordering::Acquire).then(|| collect_at.saturating_duration_since(Instant::now()))
    }

    /// Has equal files of different layers share storage until cancelled; the daemon spawns it once.
    pub async fn share_files(&self, cancel: &Cancel) {
        let (mut wait, mut behind) = (COMPARE_AFTER, false);
        loop {
            let next = async {
                self.0.fresh.any().await;
                tokio::time::sleep(wait).await;
                // Where it is never quiet, one wait is for all that has gathered, or it would never be done.
                if !behind {
                    self.quiet().await;
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = next => {}
            }
            let (begun, home) = (Instant::now(), self.clone());
            behind = task::blocking(move || Ok(home.deduplicate(COMPARE_FOR)?)).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "could not look for equal files");
                false
            });
            // No more than a third of the time.
            wait = (begun.elapsed() * 2).max(COMPARE_AFTER);
        }
    }

    /// Waits until builds have left the layers alone for a while.
    async fn quiet(&self) {
        let begun = Instant::now();
        let mut since = begun;
        while since.elapsed() < QUIET && begun.elapsed() < COMPARE_AT_LATEST {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.live().is_empty() {
                since = Instant::now();
            }
        }
    }

    /// Has the rules applied soon: something ended that may have left more than is to be kept.
    pub fn collect_soon(&self) {
        self.0.due.soon.store(true, Ordering::Release);
        self.0.account.wake.notify_one();
    }

    /// Has what is deleted already, and what the rules do not keep, make room at once: the disk is full.
    pub fn collect_now(&self) {
        self.0.due.now.store(true, Ordering::Release);
        self.0.account.wake.notify_one();
    }

    fn collect(&self, rules: &[Rule], deleted: &dyn Fn(&LayerId)) -> fault::Result<()> {
        let (mut count, mut bytes, begun) = (0_usize, 0, Instant::now());
        self.prune(rules, |gone| {
            deleted(&gone.id);
            count += 1;
            bytes += gone.size;
            true
        })?;
        if count > 0 {
            tracing::info!(count, bytes, took = ?begun.elapsed(), "collected garbage");
        }
        Ok(())
    }

    /// The disk has less room than a rule wants.
    fn is_pressed(&self, rules: &[Rule]) -> bool {
        let wanted = rules.iter().map(|rule| rule.min_free_space).max().unwrap_or(0);
        wanted > 0 && free_space(self).is_ok_and(|free| free < wanted)
    }

    async fn attempt(&self, what: &'static str, work: impl FnOnce(Layers) -> fault::Result<()> + Send + 'static) {
        let home = self.clone();
        if let Err(error) = task::blocking(move || work(home)).await {
            tracing::warn!(%error, "could not {what}");
        }
    }

    /// After the database had to be replaced.
    fn take_blobs_back(&self) -> Result<()> {
        if self.content().is_forgotten()? {
            let count = self.content().recover()?;
            tracing::warn!(count, "blobs that the new database did not know are taken back");
        }
        Ok(())
    }

    /// Removes trees that belong to no layer: their process was killed before it recorded them. Returns how many.
    pub fn reconcile(&self) -> Result<usize> {
        let owned: HashSet<TreeId> = {
            let entries = self.0.db.read()?.all(&TREES)?;
            entries.iter().filter_map(|(key, ())| key.split('/').next()?.parse().ok()).collect()
        };
        let mut removed = 0;
        for tree in self.0.trees.trees()?.into_iter().chain(self.0.trees.cells()?) {
            // Ids sort by time. What was made since the start may be on its way to its record.
            if tree < self.0.opened && !owned.contains(&tree) {
                self.remove_tree(&tree);
                removed += 1;
            }
        }
        Ok(removed)
    }
}
