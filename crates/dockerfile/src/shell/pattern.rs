/// The pattern of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?` match anything but newlines, a backslash takes `*`, `?` or itself
/// literally (and `}` and `/`, which would end the pattern). There are no classes.
pub(super) struct Pattern(Vec<Token>);

enum Token {
    Star,
    Any,
    Char(char),
}

/// Which of several possible matches a star prefers.
#[derive(Clone, Copy, PartialEq)]
enum Take {
    Shortest,
    Longest,
}

/// `${v#pattern}`, `${v##pattern}`
pub(super) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let parsed = Pattern::parse(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let take = if greedy { Take::Longest } else { Take::Shortest };
    let end = parsed.table(&chars).end(0, take).unwrap_or(0);
    Ok(chars[end..].iter().collect())
}

/// `${v%pattern}`, `${v%%pattern}`: the same, read backwards.
pub(super) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let backwards: String = value.chars().rev().collect();
    let rest = trim_prefix(&reverse(pattern), &backwards, greedy)?;
    Ok(rest.chars().rev().collect())
}

/// Backwards, with escapes kept in front of what they escape.
fn reverse(pattern: &str) -> String {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next) if c == '\\' => {
                parts.push(format!("\\{next}"));
                chars.next();
            }
            _ => parts.push(c.to_string()),
        }
    }
    parts.into_iter().rev().collect()
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut chars = text.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\')) => Token::Char(c),
                    other => {
                        let other = other.unwrap_or(char::REPLACEMENT_CHARACTER);
                        return Err(format!("invalid pattern ({text}) in substitution: invalid escape '\\{other}'"));
                    }
                },
                c => Token::Char(c),
            });
        }
        Ok(Self(tokens))
    }

    /// Replaces the leftmost, longest match. `replacement` is taken as it is.
    pub fn replace_first(&self, value: &str, replacement: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        match self.table(&chars).find(0) {
            Some((start, end)) => chars[..start].iter().copied().chain(replacement.chars()).chain(chars[end..].iter().copied()).collect(),
            None => value.to_owned(),
        }
    }

    /// Replaces all matches. As in BuildKit `$0` in the replacement is the match and any other `$name` nothing.
    pub fn replace_all(&self, value: &str, replacement: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        let table = self.table(&chars);
        let (mut out, mut kept, mut from) = (String::new(), 0, 0);
        while let Some((start, end)) = table.find(from) {
            out.extend(&chars[kept..start]);
            // An empty match right behind a match is none.
            if end > kept || start == 0 {
                out.push_str(&expand_template(replacement, &chars[start..end]));
            }
            kept = end;
            from = end.max(from + 1);
        }
        out.extend(&chars[kept.min(chars.len())..]);
        out
    }

    fn table<'a>(&'a self, chars: &'a [char]) -> Table<'a> {
        let width = chars.len() + 1;
        let mut fits = vec![false; (self.0.len() + 1) * width];
        fits[self.0.len() * width..].fill(true);
        for (i, token) in self.0.iter().enumerate().rev() {
            for j in (0..width).rev() {
                let here = chars.get(j);
                let below = |i: usize, j: usize| fits[i * width + j];
                fits[i * width + j] = match (token, here) {
                    (Token::Star, Some(c)) => below(i + 1, j) || (*c != '\n' && below(i, j + 1)),
                    (Token::Star, None) => below(i + 1, j),
                    (_, None) => false,
                    (Token::Any, Some(c)) => *c != '\n' && below(i + 1, j + 1),
                    (Token::Char(want), Some(c)) => want == c && below(i + 1, j + 1),
                };
            }
        }
        Table { tokens: &self.0, chars, fits }
    }
}

/// For each token and each place: whether the rest of the pattern can match from there.
struct Table<'a> {
    tokens: &'a [Token],
    chars: &'a [char],
    fits: Vec<bool>,
}

impl Table<'_> {
    fn fits(&self, token: usize, at: usize) -> bool {
        self.fits[token * (self.chars.len() + 1) + at]
    }

    /// The end of the match that starts at `start`.
    fn end(&self, start: usize, take: Take) -> Option<usize> {
        if !self.fits(0, start) {
            return None;
        }
        let mut at = start;
        for (i, token) in self.tokens.iter().enumerate() {
            if !matches!(token, Token::Star) {
                at += 1;
                continue;
            }
            let reach = self.chars[at..].iter().position(|c| *c == '\n').map_or(self.chars.len(), |n| at + n);
            let mut ends = (at..=reach).filter(|end| self.fits(i + 1, *end));
            at = if take == Take::Longest { ends.next_back() } else { ends.next() }.expect("the table says that one fits");
        }
        Some(at)
    }

    /// The leftmost, longest match at or after `from`.
    fn find(&self, from: usize) -> Option<(usize, usize)> {
        (from..=self.chars.len()).find_map(|start| self.end(start, Take::Longest).map(|end| (start, end)))
    }
}

fn expand_template(template: &str, whole: &[char]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let is_word = |c: char| c == '_' || c.is_alphanumeric();
        let (body, braced) = after.strip_prefix('{').map_or((after, false), |body| (body, true));
        let length = body.find(|c| !is_word(c)).unwrap_or(body.len());
        let tail = if braced { body[length..].strip_prefix('}') } else { Some(&body[length..]) };
        match tail {
            Some(tail) if length > 0 => {
                if body[..length].bytes().all(|b| b.is_ascii_digit()) && body[..length].parse() == Ok(0u32) {
                    out.extend(whole);
                }
                rest = tail;
            }
            _ => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims() {
        let prefix = |p, v, g| trim_prefix(p, v, g).unwrap();
        let suffix = |p, v, g| trim_suffix(p, v, g).unwrap();
        assert_eq!(prefix("*/", "a/b/c", false), "b/c");
        assert_eq!(prefix("*/", "a/b/c", true), "c");
        assert_eq!(prefix("x", "abc", false), "abc");
        assert_eq!(suffix("/*", "a/b/c", false), "a/b");
        assert_eq!(suffix("/*", "a/b/c", true), "a");
        assert_eq!(suffix("\\*c", "a*c", false), "a");
        assert_eq!(prefix("?", "é!", false), "!");
        assert_eq!(trim_prefix("\\a", "x", false).unwrap_err(), "invalid pattern (\\a) in substitution: invalid escape '\\a'");
    }

    #[test]
    fn replaces() {
        let all = |p, v, r| Pattern::parse(p).unwrap().replace_all(v, r);
        let first = |p, v, r| Pattern::parse(p).unwrap().replace_first(v, r);
        assert_eq!(all("a", "banana", "o"), "bonono");
        assert_eq!(first("a", "banana", "o"), "bonana");
        assert_eq!(first("a*", "banana", "o"), "bo");
        assert_eq!(all("", "abc", "-"), "-a-b-c-");
        assert_eq!(all("*", "abc", "x"), "x");
        assert_eq!(all("b", "abc", "[$0]$1$$"), "a[b]$c");
        assert_eq!(first("b", "abc", "$0"), "a$0c");
        assert_eq!(first("z", "abc", "x"), "abc");
    }
}
