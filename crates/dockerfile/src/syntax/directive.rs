use crate::{Error, Lines, Result};

/// `# name=value` at the top of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Lower case: `syntax`, `escape` or `check`.
    pub name: String,
    pub value: String,
    pub line: Lines,
}

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// Reads directives until the first line that is none.
#[derive(Debug)]
pub struct DirectiveParser {
    comment: &'static str,
    line: u32,
    seen: Vec<String>,
    done: bool,
}

impl DirectiveParser {
    /// `comment` is what introduces a comment.
    pub fn new(comment: &'static str) -> Self {
        Self { comment, line: 0, seen: Vec::new(), done: false }
    }

    fn starting_after(comment: &'static str, line: u32) -> Self {
        Self { line, ..Self::new(comment) }
    }

    pub fn line(&mut self, line: &str) -> Result<Option<Directive>> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let found = line.strip_prefix(self.comment).and_then(|rest| assignment(rest.trim_start()));
        let Some((name, value)) = found else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Error::new(format!("only one {name} parser directive can be used")));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive { name, value: value.to_owned(), line: Lines::single(self.line) }))
    }
}

fn assignment(text: &str) -> Option<(String, &str)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim_end().to_ascii_lowercase();
    let value = value.trim();
    (NAMES.contains(&name.as_str()) && !value.is_empty()).then_some((name, value))
}

/// The value of a directive and its place.
pub fn find_directive(name: &str, data: &[u8]) -> Option<Directive> {
    let (text, skipped) = body(data);
    scan(name, &text, "#", skipped)
}

/// The frontend that a file asks for, whatever its language: `# syntax=`, `// syntax=`, or the key `syntax` of a JSON object.
/// The first word of the value is the image.
pub fn find_syntax(data: &[u8]) -> Option<Directive> {
    let (text, skipped) = body(data);
    scan("syntax", &text, "#", skipped).or_else(|| scan("syntax", &text, "//", skipped)).or_else(|| {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).ok()?;
        let value = object.get("syntax")?.as_str()?.to_owned();
        Some(Directive { name: "syntax".into(), value, line: Lines::single(skipped) })
    })
}

/// The text without byte order mark and `#!` line, and how many lines were dropped.
fn body(data: &[u8]) -> (String, u32) {
    let text = String::from_utf8_lossy(data);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match text.strip_prefix("#!") {
        Some(rest) => (rest.split_once('\n').map_or("", |(_, rest)| rest).to_owned(), 1),
        None => (text.to_owned(), 0),
    }
}

fn scan(name: &str, text: &str, comment: &'static str, skipped: u32) -> Option<Directive> {
    let mut parser = DirectiveParser::starting_after(comment, skipped);
    for line in text.lines() {
        // What stands before an error still counts.
        let directive = parser.line(line).ok()??;
        if directive.name == name {
            return Some(directive);
        }
    }
    None
}
