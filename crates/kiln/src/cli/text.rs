//! Numbers, times and tables as people and scripts know them from BuildKit's tools.
use std::time::Duration;

/// Bytes in decimal units: `999B`, `1.05MB`.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value.abs() >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

/// A duration as Go prints it: `1h0m0s`, `1.5s`, `20ms`.
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |value: u128, unit: u128, digits: usize| {
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".into(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos, 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000, 6)),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let rest = fraction(nanos % 60_000_000_000, 1_000_000_000, 9);
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// Reads a Go duration: `48h`, `1h30m`, `500ms`.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, 0f64);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| at + number);
        let seconds = match &rest[number..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += rest[..number].parse::<f64>().ok()? * seconds;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok())?
}

/// Lines of cells, aligned in columns by tabs of eight. The last cell of a line is not padded; a line with fewer cells ends the columns it lacks.
pub fn table(lines: &[Vec<String>]) -> String {
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|line| vec![0; line.len().saturating_sub(1)]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut at = 0;
        while at < lines.len() {
            let end = (at..lines.len()).find(|line| widths[*line].len() <= column).unwrap_or(lines.len());
            let widest = lines[at..end].iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
            let width = (widest + 1).div_ceil(8) * 8;
            // A column that is empty throughout takes no place.
            widths[at..end].iter_mut().for_each(|line| line[column] = if widest == 0 { 0 } else { width });
            at = end + 1;
        }
    }
    let mut out = String::new();
    for (line, widths) in lines.iter().zip(&widths) {
        for (cell, text) in line.iter().enumerate() {
            out.push_str(text);
            if let Some(width) = widths.get(cell) {
                let tabs = width.saturating_sub(text.chars().count()).div_ceil(8);
                out.extend(std::iter::repeat_n('\t', tabs));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000), bytes(1_048_576), bytes(12_345_678_901)],
            ["0B", "999B", "1.00kB", "1.05MB", "12.35GB"]
        );
        let durations =
            [(0, "0s"), (20_000_000, "20ms"), (1_500_000_000, "1.5s"), (60_000_000_000, "1m0s"), (172_800_000_000_000, "48h0m0s")];
        for (nanos, text) in durations {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_go_duration(text), Some(Duration::from_nanos(nanos)));
        }
        assert_eq!(parse_go_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert!(["", "5", "h", "1x", "-1s"].iter().all(|text| parse_go_duration(text).is_none()));
    }

    #[test]
    fn tables_align_with_tabs() {
        let cells = |line: &[&str]| line.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let lines = [cells(&["ID", "PLATFORMS"]), cells(&["abcdefghij", "linux/amd64"]), cells(&["alone"]), cells(&["x", "y"])];
        assert_eq!(table(&lines), "ID\t\tPLATFORMS\nabcdefghij\tlinux/amd64\nalone\nx\ty\n");
    }
}
