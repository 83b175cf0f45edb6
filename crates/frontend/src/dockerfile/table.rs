//! Text in columns, as Go's `text/tabwriter` sets it, and excerpts of files.
use std::fmt::Write as _;

use dockerfile::Lines;

/// Cells padded to the width of their column plus `padding`; the last cell of a row is not padded.
pub(super) fn columns(rows: &[Vec<String>], padding: usize) -> String {
    let last = rows.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    let width = |column: usize| rows.iter().filter(|r| column + 1 < r.len()).map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..last).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if i + 1 < row.len() {
                let gap = widths[i] + padding - cell.chars().count();
                out.extend(std::iter::repeat_n(' ', gap));
            }
        }
        out.push('\n');
    }
    out
}

/// The lines and a few around them, those meant marked; as clients print them too.
pub(super) fn excerpt(filename: &str, data: &str, lines: Lines) -> String {
    let all: Vec<&str> = data.split('\n').collect();
    let (mut start, mut end) = (lines.first as usize, lines.last as usize);
    if start < 1 || start > all.len() {
        return String::new();
    }
    end = end.min(all.len());
    let wanted = if start == end { 4 } else { 2 };
    let (first, mut shown) = (start, 0);
    while shown < wanted {
        if start > 1 {
            start -= 1;
            shown += 1;
        }
        if end != all.len() {
            end += 1;
            shown += 1;
        }
        shown += 1;
    }
    const RULE: &str = "--------------------";
    let mut out = format!("{filename}:{first}\n{RULE}\n");
    for number in start..=end {
        let mark = if (lines.first as usize..=lines.last as usize).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:3} | {mark} {}", all[number - 1]);
    }
    out + RULE + "\n"
}
