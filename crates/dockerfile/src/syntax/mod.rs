//! Text to instructions: lines, comments, continuations, directives, flags, heredocs. What the words mean is [`crate::instruction`]'s matter.
mod directive;
mod heredoc;
mod lines;
mod node;
mod words;

use crate::{Error, Lines, Result};

pub use directive::{Directive, DirectiveParser, find_directive, find_syntax};
pub use heredoc::{Heredoc, chomp, parse_mark};
pub use node::Node;

/// A parsed Dockerfile.
#[derive(Debug, Clone)]
pub struct Document {
    pub nodes: Vec<Node>,
    /// The escape and continuation character: backslash or backtick.
    pub escape: char,
    /// The last lines of instructions that hold blank lines.
    pub empty_continuations: Vec<Lines>,
}

pub fn parse(data: &[u8]) -> Result<Document> {
    let text = String::from_utf8_lossy(data);
    let mut parser = Parser::new(&text);
    parser.document()?;
    let Some(_) = parser.nodes.first() else {
        return Err(Error::new("file with no instructions").at(parser.lines.here()));
    };
    if parser.lines.too_long() {
        let limit = lines::MAX_LINE - 1;
        return Err(Error::new(format!("dockerfile line greater than max allowed size of {limit}")).at(parser.lines.here()));
    }
    Ok(Document { nodes: parser.nodes, escape: parser.escape, empty_continuations: parser.empty_continuations })
}

struct Parser<'a> {
    lines: lines::LineReader<'a>,
    directives: DirectiveParser,
    escape: char,
    comments: Vec<String>,
    nodes: Vec<Node>,
    empty_continuations: Vec<Lines>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            lines: lines::LineReader::new(text),
            directives: DirectiveParser::new("#"),
            escape: '\\',
            comments: Vec::new(),
            nodes: Vec::new(),
            empty_continuations: Vec::new(),
        }
    }

    fn document(&mut self) -> Result<()> {
        while let Some((before, raw)) = self.lines.next() {
            let is_comment = lines::is_comment(raw);
            if is_comment {
                self.remember_comment(raw);
            }
            let line = lines::trim_newline(raw).trim_start();
            if self.directive(line).map_err(|e| e.at(Lines::single(before)))? {
                // A directive is no comment on the instruction below it.
                self.comments.pop();
            }
            let first_line = self.lines.count();
            let (line, mut ended) = self.continued(if is_comment { "" } else { line });
            if ended && line.is_empty() {
                continue;
            }
            let mut text = line.to_owned();
            let mut has_blank = false;
            while !ended {
                let Some((before, raw)) = self.lines.next() else { break };
                let line = lines::trim_newline(raw);
                self.directive(line).map_err(|e| e.at(Lines::single(before)))?;
                if lines::is_comment(raw) {
                    continue;
                }
                if line.trim_start().is_empty() {
                    has_blank = true;
                    continue;
                }
                let (line, end) = self.continued(line);
                text.push_str(line);
                ended = end;
            }
            if has_blank {
                self.empty_continuations.push(self.lines.here());
            }
            self.instruction(&text, first_line)?;
        }
        Ok(())
    }

    fn instruction(&mut self, text: &str, first_line: u32) -> Result<()> {
        let comments = std::mem::take(&mut self.comments);
        let place = |lines: &lines::LineReader| Lines::new(first_line, lines.count());
        let mut node = Node::parse(text, self.escape).map_err(|e| e.at(place(&self.lines)))?;
        node.comments = comments;
        if node.may_have_heredocs() && text.contains("<<") {
            for mark in heredoc::marks(text).map_err(|e| e.at(place(&self.lines)))? {
                let doc = self.heredoc(mark).ok_or_else(|| Error::new("unterminated heredoc").at(place(&self.lines)))?;
                node.heredocs.push(doc);
            }
        }
        node.lines = place(&self.lines);
        self.nodes.push(node);
        Ok(())
    }

    fn heredoc(&mut self, mut doc: Heredoc) -> Option<Heredoc> {
        loop {
            let (_, raw) = self.lines.next()?;
            let line = lines::trim_newline(raw);
            let line = if doc.chomp { line.trim_start_matches('\t') } else { line };
            if line == doc.name {
                return Some(doc);
            }
            doc.content.push_str(raw);
        }
    }

    fn remember_comment(&mut self, raw: &str) {
        // The mark is dropped by position, so an indented comment keeps it.
        let mut rest = raw.chars();
        rest.next();
        match rest.as_str().trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
    }

    fn directive(&mut self, line: &str) -> Result<bool> {
        let found = self.directives.line(line)?;
        if let Some(directive) = &found
            && directive.name == "escape"
        {
            self.escape = match directive.value.as_str() {
                "\\" => '\\',
                "`" => '`',
                other => return Err(Error::new(format!("invalid escape token '{other}' does not match ` or \\"))),
            };
        }
        Ok(found.is_some())
    }

    /// The line without its continuation mark, and whether it is the last of its instruction.
    fn continued<'l>(&self, line: &'l str) -> (&'l str, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, false),
            _ => (line, true),
        }
    }
}
