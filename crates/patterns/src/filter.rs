//! Filters over named fields, as containerd's clients write them: `type==source.local,inuse`, `labels."a.b"~=x.*`.
//!
//! Grammar: selectors joined by `,` must all match; a selector is a field path, alone (the field is there) or with `==`, `!=` or `~=` and a value.
//! Path parts and values may be quoted with `"`; after `~=` also with `/` or `|`.
use crate::regex::Regex;

/// Filter texts of which any may match; none at all match everything.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None`: not a regular expression that we know, which matches nothing.
    Matches(Option<Regex>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {text:?} is malformed at byte {at}: {problem}")]
pub struct FilterError {
    pub text: String,
    pub at: usize,
    pub problem: &'static str,
}

impl Filters {
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, FilterError> {
        texts.iter().map(|text| Parser { text: text.as_ref(), at: 0 }.selectors()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a thing passes. `field` gives the value at a path, `None` where the thing has no such field.
    pub fn matches(&self, field: impl Fn(&[&str]) -> Option<String>) -> bool {
        let holds = |selector: &Selector| {
            let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
            let value = field(&path);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.as_ref() == Some(wanted),
                Test::NotEqual(other) => value.as_deref().unwrap_or_default() != other,
                Test::Matches(regex) => regex.as_ref().zip(value).is_some_and(|(regex, value)| regex.matches(&value)),
            }
        };
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(holds))
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = Vec::new();
        while !self.rest().is_empty() {
            selectors.push(self.selector()?);
            if !self.rest().is_empty() && !self.eat(",") {
                return Err(self.error("expected `,`"));
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.eat(".") {
            path.push(self.field()?);
        }
        let test = if self.eat("==") {
            Test::Equal(self.value(&['"'])?)
        } else if self.eat("!=") {
            Test::NotEqual(self.value(&['"'])?)
        } else if self.eat("~=") {
            Test::Matches(Regex::parse(&self.value(&['"', '/', '|'])?))
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let length = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        if length == 0 {
            return Err(self.error("expected a field name"));
        }
        Ok(self.take(length))
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, FilterError> {
        match self.rest().chars().next() {
            Some(quote) if quotes.contains(&quote) => self.quoted(quote),
            _ => {
                let length = self.rest().find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest().len());
                if length == 0 { Err(self.error("expected a value")) } else { Ok(self.take(length)) }
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += at + c.len_utf8();
                    return Ok(out);
                }
                // Regular expressions keep their own escapes.
                '\\' => match chars.next() {
                    Some((_, next)) if next == quote || quote == '"' => out.push(next),
                    Some((_, next)) => out.extend(['\\', next]),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.error("a quote is not closed"))
    }

    fn take(&mut self, length: usize) -> String {
        let taken = self.rest()[..length].to_owned();
        self.at += length;
        taken
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, problem: &'static str) -> FilterError {
        FilterError { text: self.text.to_owned(), at: self.at, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(filters: &[&str]) -> bool {
        Filters::parse(filters).unwrap().matches(|path| match path {
            ["id"] => Some("abc".into()),
            ["type"] => Some("source.local".into()),
            ["labels", "a.b"] => Some("x,y".into()),
            ["inuse"] => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn selectors_all_and_filters_any() {
        assert!(passes(&[]) && passes(&[""]));
        assert!(passes(&["type==source.local,inuse"]) && passes(&["id!=x"]) && passes(&["missing!=x"]));
        assert!(!passes(&["type==source.local,mutable"]) && !passes(&["id==x"]) && !passes(&["missing==x"]));
        assert!(passes(&["id==x", "id==abc"]));
        assert!(passes(&[r#"labels."a.b"=="x,y""#]) && passes(&["id~=^a.c$"]) && passes(&["type~=/source\\.l/"]));
        assert!(!passes(&["id~=^b"]) && !passes(&["id~=("]));
    }

    #[test]
    fn malformed_filters_say_where() {
        let at = |text| Filters::parse(&[text]).unwrap_err().at;
        assert_eq!((at("id=="), at("=="), at("id abc"), at("id==\"a")), (4, 0, 2, 4));
    }
}
