//! How a failure is told: the place in the user's file, then the message.
use fault::{Detail, Fault, Range};

pub fn print(fault: &Fault) {
    for detail in fault.details() {
        if let Detail::Source { filename, data, ranges, .. } = wire::decode_detail(detail.clone()) {
            eprint!("{}", excerpt(&filename, &String::from_utf8_lossy(&data), &ranges));
        }
    }
    eprintln!("error: {fault}");
}

/// The lines with a few around them, the guilty ones marked.
fn excerpt(filename: &str, text: &str, ranges: &[Range]) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let span = |range: &Range| (range.start.0, range.end.0.max(range.start.0));
    let (Some(first), Some(last)) = (ranges.iter().map(|r| span(r).0).min(), ranges.iter().map(|r| span(r).1).max()) else {
        return String::new();
    };
    let count = lines.len() as i32;
    if first < 1 || first > count {
        return String::new();
    }
    let (mut start, mut end) = (first, last.min(count));
    let pad = if start == end { 4 } else { 2 };
    let mut padded = 0;
    while padded < pad {
        if start > 1 {
            start -= 1;
            padded += 1;
        }
        if end != count {
            end += 1;
            padded += 1;
        }
        padded += 1;
    }
    let mut out = format!("{filename}:{first}\n--------------------\n");
    for number in start..=end {
        let guilty = ranges.iter().any(|range| (span(range).0..=span(range).1).contains(&number));
        out += &format!(" {number:>3} | {} {}\n", if guilty { ">>>" } else { "   " }, lines[number as usize - 1]);
    }
    out + "--------------------\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guilty_lines_are_marked() {
        let range = Range { start: (3, 0), end: (3, 5) };
        let text = "FROM a\n\nRUN false\n\nRUN true";
        let expected = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     \n   3 | >>> RUN false\n   4 |     \n   5 |     RUN true\n--------------------\n";
        assert_eq!(excerpt("Dockerfile", text, &[range]), expected);
        assert_eq!(excerpt("Dockerfile", text, &[]), "");
        assert_eq!(excerpt("Dockerfile", text, &[Range { start: (9, 0), end: (9, 0) }]), "");
    }
}
