use std::collections::BTreeSet;

use super::cursor::Cursor;
use super::pattern::{self, Pattern};
use super::{ExpandError, Expanded, Variables};

/// How to read words. Cheap to copy; the switches change what is kept of the source text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lexer {
    escape: char,
    /// Quotes stay in the result.
    pub raw_quotes: bool,
    /// Escape characters stay in the result.
    pub raw_escapes: bool,
    /// Quotes are characters like any other.
    pub literal_quotes: bool,
    /// References to variables that are not set stay as they were written.
    pub keep_unset: bool,
}

impl Lexer {
    /// `escape` is the backslash or the backtick.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, literal_quotes: false, keep_unset: false }
    }

    pub fn expand(&self, word: &str, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
        let mut run = Run {
            lexer: self,
            variables,
            cursor: Cursor::new(word),
            raw_escapes: self.raw_escapes,
            depth: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        let outcome = run.until(None);
        let Run { matched, unmatched, .. } = run;
        match outcome {
            Ok((text, words)) => Ok(Expanded { text, words, matched, unmatched }),
            Err(reason) => Err(ExpandError { word: word.to_owned(), reason, unmatched }),
        }
    }

    pub fn words(&self, word: &str, variables: &dyn Variables) -> Result<Vec<String>, ExpandError> {
        self.expand(word, variables).map(|e| e.words)
    }
}

struct Run<'a> {
    lexer: &'a Lexer,
    variables: &'a dyn Variables,
    cursor: Cursor<'a>,
    raw_escapes: bool,
    depth: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

type Outcome<T> = Result<T, String>;

/// How deep `${a:-${b:-…}}` may go: it is read recursively, and a line is long enough to exhaust the stack.
const MAX_DEPTH: usize = 100;

impl Run<'_> {
    /// Reads up to and past `stop`, or to the end if there is none.
    fn until(&mut self, stop: Option<char>) -> Outcome<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.cursor.peek() {
            if stop == Some(c) {
                self.cursor.next();
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.lexer.literal_quotes => {
                    let value = if c == '"' { self.double_quotes()? } else { self.single_quotes()? };
                    words.push_quoted(&value);
                    text.push_str(&value);
                }
                '<' => {
                    let value = self.heredoc_mark();
                    words.push_quoted(&value);
                    text.push_str(&value);
                }
                c => {
                    self.cursor.next();
                    let mut c = c;
                    if c == self.lexer.escape {
                        if self.raw_escapes {
                            words.push_raw(c);
                            text.push(c);
                        }
                        let Some(next) = self.cursor.next() else { break };
                        c = next;
                        words.push_raw(c);
                    } else {
                        words.push(c);
                    }
                    text.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok((text, words.finish())),
        }
    }

    /// [`Run::until`] with another rule about escapes.
    fn part(&mut self, stop: char, raw_escapes: bool) -> Outcome<String> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let part = self.until(Some(stop));
        self.raw_escapes = outer;
        part.map(|(text, _)| text)
    }

    fn single_quotes(&mut self) -> Outcome<String> {
        let mut text = String::new();
        let quote = self.cursor.next();
        text.extend(quote.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.cursor.next() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => {
                    text.extend(quote.filter(|_| self.lexer.raw_quotes));
                    return Ok(text);
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn double_quotes(&mut self) -> Outcome<String> {
        let mut text = String::new();
        let quote = self.cursor.next();
        text.extend(quote.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.cursor.peek() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.cursor.next();
                    text.extend(quote.filter(|_| self.lexer.raw_quotes));
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) => {
                    self.cursor.next();
                    if c != self.lexer.escape {
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.cursor.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                            self.cursor.next();
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
    }

    /// `<<` keeps the blanks behind it, so that they are part of the word.
    fn heredoc_mark(&mut self) -> String {
        self.cursor.next();
        if !self.cursor.take_if('<') {
            return "<".into();
        }
        let mut mark = String::from("<<");
        while let Some(c @ ('\t' | '\r' | ' ')) = self.cursor.peek() {
            self.cursor.next();
            mark.push(c);
        }
        mark
    }

    fn dollar(&mut self) -> Outcome<String> {
        self.cursor.next();
        if self.cursor.take_if('{') {
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".into());
        }
        Ok(match self.lookup(&name) {
            None if self.lexer.keep_unset => format!("${name}"),
            value => value.unwrap_or_default(),
        })
    }

    fn braces(&mut self) -> Outcome<String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("substitutions are nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let value = self.substitution();
        self.depth -= 1;
        value
    }

    fn substitution(&mut self) -> Outcome<String> {
        match self.cursor.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            _ => {}
        }
        let name = self.name();
        let operator = self.cursor.next();
        match operator {
            Some('}') => Ok(match self.lookup(&name) {
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let operator = self.cursor.next();
                self.modifier(&name, operator, true)
            }
            Some('+' | '-' | '?' | '#' | '%') => self.modifier(&name, operator, false),
            Some('/') => self.replacement(&name),
            other => Err(unsupported("", other)),
        }
    }

    fn modifier(&mut self, name: &str, operator: Option<char>, empty_is_unset: bool) -> Outcome<String> {
        let colon = if empty_is_unset { ":" } else { "" };
        let trims = matches!(operator, Some('#' | '%'));
        if empty_is_unset && trims {
            return Err(unsupported(colon, operator));
        }
        let word = self.part('}', trims).map_err(|e| self.or_missing(e, "missing '}'"))?;
        let value = self.lookup(name);
        let Some(operator) = operator else { return Err(unsupported(colon, None)) };
        if value.is_none() && self.lexer.keep_unset {
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let given = value.clone().filter(|v| !(empty_is_unset && v.is_empty()));
        match operator {
            '-' => Ok(given.unwrap_or(word)),
            '+' => Ok(given.map(|_| word).unwrap_or_default()),
            '?' => given.ok_or_else(|| {
                let fault = if value.is_none() { "is not allowed to be unset" } else { "is not allowed to be empty" };
                format!("{name}: {}", if word.is_empty() { fault } else { &word })
            }),
            '#' | '%' => {
                let (greedy, pattern) = word.strip_prefix(operator).map_or((false, word.as_str()), |rest| (true, rest));
                let trim = if operator == '#' { pattern::trim_prefix } else { pattern::trim_suffix };
                trim(pattern, &value.unwrap_or_default(), greedy)
            }
            other => Err(unsupported(colon, Some(other))),
        }
    }

    fn replacement(&mut self, name: &str) -> Outcome<String> {
        let all = self.cursor.take_if('/');
        let pattern = self.part('/', true).map_err(|e| self.or_missing(e, "missing '/' in ${}"))?;
        let replacement = self.part('}', true).map_err(|e| self.or_missing(e, "missing '}'"))?;
        let value = self.lookup(name);
        if value.is_none() && self.lexer.keep_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let parsed = Pattern::parse(&pattern)?;
        let value = value.unwrap_or_default();
        Ok(if all { parsed.replace_all(&value, &replacement) } else { parsed.replace_first(&value, &replacement) })
    }

    /// At the end of the text a failed part means that its end is missing.
    fn or_missing(&self, reason: String, missing: &str) -> String {
        if self.cursor.at_end() { format!("syntax error: {missing}") } else { reason }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.cursor.peek() {
            Some(c) if c.is_ascii_digit() => {
                while let Some(c) = self.cursor.peek().filter(char::is_ascii_digit) {
                    self.cursor.next();
                    name.push(c);
                }
            }
            Some(c @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.cursor.next();
                name.push(c);
            }
            _ => {
                while let Some(c) = self.cursor.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
                    self.cursor.next();
                    name.push(c);
                }
            }
        }
        name
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !seen.contains(name) {
            seen.insert(name.to_owned());
        }
        value
    }
}

fn unsupported(colon: &str, operator: Option<char>) -> String {
    format!("unsupported modifier ({colon}{}) in substitution", operator.unwrap_or(char::REPLACEMENT_CHARACTER))
}

/// Splits while the text is read.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.current.push(c);
        } else if !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
        }
    }

    fn push_raw(&mut self, c: char) {
        self.current.push(c);
    }

    fn push_quoted(&mut self, text: &str) {
        self.current.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}
