use crate::shell::{Lexer, NoVariables};
use crate::{Error, Result};

/// A document inside the Dockerfile: `<<EOF`, the lines, `EOF`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    pub file_descriptor: u64,
    /// Variables in it are expanded: no part of the name was quoted.
    pub expand: bool,
    /// `<<-`: leading tabs do not count.
    pub chomp: bool,
    /// Its lines, each with its newline.
    pub content: String,
}

/// Reads a word as the mark of a heredoc.
pub fn parse_mark(word: &str) -> Result<Option<Heredoc>> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let mut lexer = Lexer::new('\\');
    lexer.keep_unset = true;
    let plain = lexer.words(rest, &NoVariables)?;
    let [name] = plain.as_slice() else { return Ok(None) };
    lexer.raw_quotes = true;
    let raw = lexer.words(rest, &NoVariables)?;
    if raw.len() != 1 {
        return Err(Error::new(format!("internal lexing of heredoc produced inconsistent results: {rest}")));
    }
    // A quote that does not survive is one that was meant as a quote.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        file_descriptor: number.parse().unwrap_or(0),
        expand: quotes(name) == quotes(&raw[0]),
        chomp,
        content: String::new(),
    }))
}

/// All marks of an instruction, in order.
pub(super) fn marks(line: &str) -> Result<Vec<Heredoc>> {
    let mut lexer = Lexer::new('\\');
    lexer.raw_quotes = true;
    lexer.raw_escapes = true;
    lexer.keep_unset = true;
    let words = lexer.words(line, &NoVariables).unwrap_or_default();
    words.iter().filter_map(|word| parse_mark(word).transpose()).collect()
}

/// Drops the leading tabs of every line.
pub fn chomp(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}
