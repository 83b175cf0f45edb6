//! Which inodes of a draft other trees have too.
use std::collections::{HashMap, HashSet};

use crate::loans::{Drawn, Loan, Loans};
use crate::metadata::Metadata;

#[derive(Debug, Default)]
pub(crate) struct Links {
    /// (device, inode) of what was linked in from other trees.
    linked: HashSet<(u64, u64)>,
    /// Of what has several names within this draft.
    own: HashSet<(u64, u64)>,
    /// The names that a linked inode was given within this draft, where it has more than the first.
    names: HashMap<(u64, u64), Vec<Vec<u8>>>,
    /// Where the linked inodes came from.
    drawn: Drawn,
}

impl Links {
    pub(crate) fn note_linked(&mut self, metadata: &Metadata, loan: Loan) {
        self.note_drawn(metadata.dev, loan);
    }

    /// Of a file that somebody other than an editor linked in.
    pub(crate) fn note_drawn(&mut self, device: u64, loan: Loan) {
        self.linked.insert((device, loan.ino));
        self.drawn.insert(loan.ino, loan);
    }

    pub(crate) fn has_linked(&self, metadata: &Metadata) -> bool {
        self.linked.contains(&(metadata.dev, metadata.ino))
    }

    pub(crate) fn note_own(&mut self, metadata: &Metadata) {
        self.own.insert((metadata.dev, metadata.ino));
    }

    /// Another name was made for an inode of this draft.
    pub(crate) fn note_name(&mut self, metadata: &Metadata, first: Vec<u8>, second: Vec<u8>) {
        if self.has_linked(metadata) {
            let names = self.names.entry((metadata.dev, metadata.ino)).or_default();
            names.extend([first, second]);
        } else {
            self.note_own(metadata);
        }
    }

    /// All names that [`Links::note_name`] was told of; some may be gone.
    pub(crate) fn take_names(&mut self, metadata: &Metadata) -> Vec<Vec<u8>> {
        self.names.remove(&(metadata.dev, metadata.ino)).unwrap_or_default()
    }

    /// Has several names, all of them in this draft.
    pub(crate) fn is_own(&self, metadata: &Metadata) -> bool {
        let key = (metadata.dev, metadata.ino);
        self.own.contains(&key) && !self.linked.contains(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.linked.is_empty()
    }

    pub(crate) fn loans(&self) -> Loans {
        Loans::new(self.drawn.values().copied().collect())
    }
}
