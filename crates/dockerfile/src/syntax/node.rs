use super::Heredoc;
use super::words::{BLANKS, flags, quoted_words, split_all, split_first};
use crate::{Error, Lines, Result};

/// One instruction, cut into parts but not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// As written.
    pub keyword: String,
    /// `--name[=value]`, unquoted.
    pub flags: Vec<String>,
    /// For ENV and LABEL threes of key, value and delimiter (`=`, or empty for the legacy form). For ONBUILD the inner keyword comes first.
    pub args: Vec<String>,
    /// The arguments were a JSON array.
    pub json: bool,
    /// The instruction that ONBUILD holds.
    pub inner: Option<Box<Node>>,
    pub heredocs: Vec<Heredoc>,
    /// The whole instruction with continuation lines joined, without heredocs.
    pub original: String,
    pub lines: Lines,
    /// The comments right above it.
    pub comments: Vec<String>,
}

impl Node {
    pub(super) fn parse(text: &str, escape: char) -> Result<Self> {
        let (keyword, rest) = split_first(text.trim()).unwrap_or((text.trim(), ""));
        let (flags, rest) = flags(rest, escape);
        let mut node = Self {
            keyword: keyword.to_owned(),
            flags,
            args: Vec::new(),
            json: false,
            inner: None,
            heredocs: Vec::new(),
            original: text.to_owned(),
            lines: Lines::single(0),
            comments: Vec::new(),
        };
        node.arguments(rest, escape)?;
        Ok(node)
    }

    fn arguments(&mut self, rest: &str, escape: char) -> Result<()> {
        let command = self.keyword.to_lowercase();
        match command.as_str() {
            "add" | "copy" | "volume" => {
                let taken = self.take_json(rest)?;
                if !taken && !rest.is_empty() {
                    self.args = split_all(rest);
                }
            }
            "run" | "cmd" | "entrypoint" | "shell" => self.command_line(rest)?,
            "arg" => self.args = quoted_words(rest, escape),
            "env" => self.args = pairs(rest, "ENV", escape)?,
            "label" => self.args = pairs(rest, "LABEL", escape)?,
            "expose" | "from" if !rest.is_empty() => self.args = split_all(rest),
            "maintainer" | "stopsignal" | "user" | "workdir" if !rest.is_empty() => self.args = vec![rest.to_owned()],
            "healthcheck" if !rest.is_empty() => {
                let (kind, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                self.command_line(tail.trim_start())?;
                self.args.insert(0, kind.to_owned());
            }
            "onbuild" if !rest.is_empty() => {
                // A chain of them is refused later; reading on would only cost stack.
                let chained = rest.split(BLANKS).next().is_some_and(|word| word.eq_ignore_ascii_case("onbuild"));
                let inner = Node::parse(if chained { "ONBUILD" } else { rest }, escape)?;
                self.args = std::iter::once(inner.keyword.clone()).chain(inner.args.iter().cloned()).collect();
                self.inner = Some(Box::new(inner));
            }
            _ => {}
        }
        Ok(())
    }

    fn command_line(&mut self, rest: &str) -> Result<()> {
        if !rest.is_empty() && !self.take_json(rest)? {
            self.args = vec![rest.to_owned()];
        }
        Ok(())
    }

    /// Takes `rest` as a JSON array. What does not parse is not one; what holds other things than strings is wrong.
    fn take_json(&mut self, rest: &str) -> Result<bool> {
        if !rest.starts_with('[') {
            return Ok(false);
        }
        let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else { return Ok(false) };
        let strings = values.into_iter().map(|v| match v {
            serde_json::Value::String(text) => Ok(text),
            _ => Err(Error::new("when using JSON array syntax, arrays must be comprised of strings only")),
        });
        self.args = strings.collect::<Result<_>>()?;
        self.json = true;
        Ok(true)
    }

    pub(super) fn may_have_heredocs(&self) -> bool {
        let node = match &self.inner {
            Some(inner) => inner,
            None => self,
        };
        matches!(node.keyword.to_lowercase().as_str(), "add" | "copy" | "run") && !node.json
    }
}

/// `k=v k2=v2`, or the legacy `k the rest`.
fn pairs(rest: &str, command: &str, escape: char) -> Result<Vec<String>> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let (key, value) = split_first(rest).ok_or_else(|| Error::new(format!("{command} must have two arguments")))?;
        return Ok(vec![key.to_owned(), value.to_owned(), String::new()]);
    }
    let mut out = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let Some((key, value)) = word.split_once('=') else {
            let word = crate::text::quote(word);
            return Err(Error::new(format!("Syntax error - can't find = in {word}. Must be of the form: name=value")));
        };
        out.extend([key.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(out)
}
