use crate::Lines;

/// The longest line that is read, with its newline, in bytes.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// Lines with their newlines, counted.
pub(super) struct LineReader<'a> {
    rest: &'a str,
    count: u32,
    too_long: bool,
}

impl<'a> LineReader<'a> {
    pub fn new(text: &'a str) -> Self {
        let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { rest, count: 0, too_long: false }
    }

    /// The next line and how many came before it. `None` at the end, and from the first line on that is too long.
    pub fn next(&mut self) -> Option<(u32, &'a str)> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let newline = self.rest.find('\n');
        let length = newline.map_or(self.rest.len(), |at| at + 1);
        if length > MAX_LINE || (newline.is_none() && length == MAX_LINE) {
            self.too_long = true;
            return None;
        }
        let (line, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.count += 1;
        Some((self.count - 1, line))
    }

    /// How many lines were read.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The line that was read last.
    pub fn here(&self) -> Lines {
        Lines::single(self.count)
    }

    pub fn too_long(&self) -> bool {
        self.too_long
    }
}

pub(super) fn trim_newline(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

pub(super) fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}
