//! When wanted files are asked for: so that what the client has under way stays bounded, in files and in bytes.
//!
//! What is not bounded here waits in the connection's windows, where many small messages cost more than they count; the HTTP/2 library gives a connection
//! up that has too many. Large files, of which a part fills any bound, are asked for when no more entries come, as then only their own data waits.
use std::collections::VecDeque;

/// How many files are under way at most.
pub(crate) const FILES: usize = 4096;
/// How many bytes are, with [`LARGE`] for a large file.
pub(crate) const BYTES: u64 = 16 << 20;
/// A file of more bytes is a large one.
pub(crate) const LARGE: u64 = BYTES / 4;

#[derive(Default)]
pub(crate) struct Pace {
    small: VecDeque<(u32, u64)>,
    large: VecDeque<u32>,
    files: usize,
    bytes: u64,
}

impl Pace {
    pub fn want(&mut self, id: u32, size: i64) {
        match charge(size) {
            LARGE => self.large.push_back(id),
            bytes => self.small.push_back((id, bytes)),
        }
    }

    /// One has come. A client may send what it was not asked for yet.
    pub fn done(&mut self, size: i64) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(charge(size));
    }

    /// What to ask for now. `ended` says that there will be no more entries.
    pub fn next(&mut self, ended: bool) -> Vec<u32> {
        let mut ids = Vec::new();
        while let Some((id, bytes)) = self.small.front().copied()
            && self.take(bytes)
        {
            self.small.pop_front();
            ids.push(id);
        }
        while ended
            && let Some(id) = self.large.front().copied()
            && self.take(LARGE)
        {
            self.large.pop_front();
            ids.push(id);
        }
        ids
    }

    fn take(&mut self, bytes: u64) -> bool {
        let fits = self.files < FILES && self.bytes + bytes <= BYTES;
        if fits {
            self.files += 1;
            self.bytes += bytes;
        }
        fits
    }
}

fn charge(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0).min(LARGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_bytes_under_way_are_bounded_and_all_come_in_the_end() {
        let sizes: Vec<i64> = (0..20_000).map(|n| [0, 100, 70_000, 5 << 20, -1][n % 5]).collect();
        let mut pace = Pace::default();
        for (id, size) in sizes.iter().enumerate() {
            pace.want(id as u32, *size);
        }
        let mut under_way: VecDeque<u32> = pace.next(false).into();
        assert!(under_way.iter().all(|id| sizes[*id as usize] < 5 << 20), "large files wait for the end of the list");
        let mut seen = 0;
        while let Some(id) = under_way.pop_front() {
            let bytes: u64 = under_way.iter().map(|id| charge(sizes[*id as usize])).sum();
            assert!(under_way.len() < FILES && bytes <= BYTES);
            seen += 1;
            pace.done(sizes[id as usize]);
            under_way.extend(pace.next(true));
        }
        assert_eq!(seen, sizes.len());
    }
}
