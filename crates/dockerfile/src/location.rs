/// Lines of a Dockerfile, both ends included, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lines {
    pub first: u32,
    pub last: u32,
}

impl Lines {
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last: last.max(first) }
    }

    pub fn single(line: u32) -> Self {
        Self::new(line, line)
    }

    /// As clients get them: one range for each line, characters always 0.
    pub fn ranges(self) -> impl Iterator<Item = llb::Range> {
        (self.first..=self.last).map(|line| llb::Range { start: (line as i32, 0), end: (line as i32, 0) })
    }
}
