use crate::path::clean;

/// The patterns of an ignore file, in order. Comments (`#` in the first column) and blank lines are dropped, blanks around a pattern
/// trimmed, paths cleaned and made relative; a leading `!` stays. Follows moby's `ignorefile`.
pub fn parse(data: &[u8]) -> Vec<String> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    String::from_utf8_lossy(data).lines().filter_map(pattern).collect()
}

fn pattern(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    let (mark, path) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if path.is_empty() {
        // A lone `!` is kept: it is an error where the patterns are used.
        return (!mark.is_empty()).then(|| mark.to_owned());
    }
    let path = clean(path);
    let path = if path.len() > 1 { path.strip_prefix('/').unwrap_or(&path) } else { &path };
    Some(format!("{mark}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let text = "\u{feff}# comment\n test1\n/test2\n/a/file/here\n\nlastfile\n # not a comment\n!/inverted/abs/path\n! rel \n!\n/\n..\r\na/../b/\n";
        let want = ["test1", "test2", "a/file/here", "lastfile", "# not a comment", "!inverted/abs/path", "!rel", "!", "/", "..", "b"];
        assert_eq!(parse(text.as_bytes()), want);
        assert!(parse(b"").is_empty());
    }
}
