//! Text around binary: OpenPGP's armor (RFC 9580, section 6) and PEM, which look alike.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A block: what it is, and its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub label: String,
    pub bytes: Vec<u8>,
}

/// All blocks of a text, in order; `None` if one has no end or is no base64.
pub(super) fn blocks(text: &str) -> Option<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else { continue };
        let end = format!("-----END {label}-----");
        let mut body: Vec<&str> = Vec::new();
        loop {
            match lines.next()? {
                line if line == end => break,
                line => body.push(line),
            }
        }
        // Headers end with an empty line; where there are none, that line may be missing.
        let start = body.iter().position(|line| line.is_empty()).filter(|at| body[..*at].iter().all(|line| line.contains(": ")));
        // OpenPGP's checksum is no protection, and is not required any more.
        let data: String = body[start.map_or(0, |at| at + 1)..].iter().filter(|line| !is_checksum(line)).copied().collect();
        blocks.push(Block { label: label.to_owned(), bytes: STANDARD.decode(data).ok()? });
    }
    Some(blocks)
}

fn is_checksum(line: &str) -> bool {
    line.len() == 5 && line.starts_with('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_headers_checksums_and_several_blocks() {
        let text = "x\n-----BEGIN A B-----\nVersion: 1\nComment: c\n\naGVs\nbG8=\n=abcd\n-----END A B-----\n\n-----BEGIN C-----\r\n\r\neA==\r\n-----END C-----\n";
        let block = |label: &str, bytes: &str| Block { label: label.into(), bytes: bytes.into() };
        assert_eq!(blocks(text).unwrap(), [block("A B", "hello"), block("C", "x")]);
        assert_eq!(blocks("-----BEGIN C-----\neA==\n-----END C-----").unwrap(), [block("C", "x")]);
        assert_eq!(blocks("plain text").unwrap(), []);
    }

    #[test]
    fn refuses_what_is_cut_short_or_no_base64() {
        assert_eq!(blocks("-----BEGIN C-----\neA==\n"), None);
        assert_eq!(blocks("-----BEGIN C-----\n\n???\n-----END C-----"), None);
    }
}
