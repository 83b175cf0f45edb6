use crate::glob::{BadPattern, Glob};
use crate::path::clean;
use crate::regex::Regex;

/// A list of patterns of which the last one that matches decides; `!` in front of a pattern takes matches out again.
/// Paths are relative and clean. Follows moby's `patternmatcher`.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    exclusions: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclusion,
    #[error(transparent)]
    BadPattern(#[from] BadPattern),
}

/// What matched a directory, pattern by pattern; lets a walk match its children without looking at their parents again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parent(Vec<bool>);

#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    exclusion: bool,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Exact,
    /// `x**`: whatever begins with this.
    Prefix(String),
    /// `**x`: whatever ends with this; with a slash in front, also the rest alone.
    Suffix(String),
    Regex(Regex),
    /// Passes as a glob but not as what the glob is translated to: an error where it is first matched.
    Broken,
}

impl Matcher {
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, MatcherError> {
        let mut matcher = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean(pattern);
            let (exclusion, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(MatcherError::LoneExclusion),
                Some(rest) => (true, rest),
                None => (false, cleaned.as_str()),
            };
            Glob::new(text)?;
            matcher.exclusions |= exclusion;
            matcher.patterns.push(Pattern { text: text.to_owned(), exclusion, kind: Kind::of(text) });
        }
        Ok(matcher)
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether there is a `!` pattern.
    pub fn has_exclusions(&self) -> bool {
        self.exclusions
    }

    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether `path`, or a directory above it, is matched.
    pub fn matches(&self, path: &str) -> Result<bool, MatcherError> {
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.exclusion == matched && pattern.matches_or_parent(path)? {
                matched = !pattern.exclusion;
            }
        }
        Ok(matched)
    }

    /// The same while walking a tree from its root: `parent` is what this gave for the directory that holds `path`
    /// (the default value if that is not known, and for the first level).
    pub fn matches_below(&self, path: &str, parent: &Parent) -> Result<(bool, Parent), MatcherError> {
        let mut matched = false;
        let mut found = vec![false; self.patterns.len()];
        for (i, pattern) in self.patterns.iter().enumerate() {
            let known = parent.0.get(i).copied();
            let hit = match known {
                Some(true) => true,
                _ if pattern.exclusion != matched => continue,
                Some(false) => pattern.matches(path)?,
                None => pattern.matches_or_parent(path)?,
            };
            found[i] = hit;
            if hit {
                matched = !pattern.exclusion;
            }
        }
        Ok((matched, Parent(found)))
    }
}

impl Pattern {
    /// Cleaned, without the `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn is_exclusion(&self) -> bool {
        self.exclusion
    }

    /// Whether this pattern alone, taken as an inclusion, matches exactly `path`.
    pub fn matches(&self, path: &str) -> Result<bool, MatcherError> {
        Ok(match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Kind::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/').is_some_and(|rest| path == rest),
            Kind::Regex(regex) => regex.matches(path),
            Kind::Broken => return Err(BadPattern.into()),
        })
    }

    fn matches_or_parent(&self, path: &str) -> Result<bool, MatcherError> {
        if self.matches(path)? {
            return Ok(true);
        }
        Ok(path.match_indices('/').any(|(at, _)| self.matches(&path[..at]).unwrap_or(false)))
    }
}

impl Kind {
    /// The translation is moby's, character for character: what it leaves unescaped has its meaning as a regular expression.
    fn of(pattern: &str) -> Self {
        #[derive(PartialEq)]
        enum Seen {
            Literal,
            Prefix,
            Suffix,
            Special,
        }
        let mut regex = String::from("^");
        let mut seen = Seen::Literal;
        let mut chars = pattern.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        regex.push_str("(.*/)?");
                        seen = Seen::Special;
                    } else if seen == Seen::Literal {
                        seen = Seen::Prefix;
                    } else {
                        regex.push_str(".*");
                        seen = Seen::Special;
                    }
                    if first {
                        seen = Seen::Suffix;
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    seen = Seen::Special;
                }
                '?' => {
                    regex.push_str("[^/]");
                    seen = Seen::Special;
                }
                '.' | '+' | '(' | ')' | '$' => regex.extend(['\\', c]),
                '\\' => {
                    regex.push('\\');
                    if let Some(next) = chars.next() {
                        regex.push(next);
                        seen = Seen::Special;
                    }
                }
                '[' | ']' => {
                    regex.push(c);
                    seen = Seen::Special;
                }
                c => regex.push(c),
            }
            first = false;
        }
        match seen {
            Seen::Literal => Kind::Exact,
            Seen::Prefix => Kind::Prefix(pattern[..pattern.len() - 2].to_owned()),
            Seen::Suffix => Kind::Suffix(pattern[2..].to_owned()),
            Seen::Special => {
                regex.push('$');
                Regex::parse(&regex).map_or(Kind::Broken, Kind::Regex)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Matcher::new([pattern]).unwrap().matches(path).unwrap()
    }

    #[test]
    fn single_patterns() {
        for (pattern, path, want) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/file", true),
            ("**/file", "dir/dirfile", false),
            ("**file", "dir/dirfile", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abc/def", false),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a(b)c/def", "a(b)c/xyz", false),
            ("a.|)$(}+{bc*", "a.|)$(}+{bcd", true),
            ("dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
            ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
            ("{a,b}*", "{a,b}c", true),
            ("dir", "dir/deep/file", true),
            ("dir/", "dir/file", true),
            ("*.rs", "src/a.rs", false),
        ] {
            assert_eq!(matches(pattern, path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_match_decides_in_both_ways_of_asking() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&["*", "!a"], "a", false),
            (&["*", "!a"], "a/b", false),
            (&["*", "!a", "a/b"], "a/b", true),
            (&["dir", "!dir/keep"], "dir/keep", false),
            (&["dir", "!dir/keep"], "dir/keep/x", false),
            (&["dir", "!dir/keep"], "dir/other", true),
            (&["!docs", "docs"], "docs/a", true),
            (&["**", "!util/docker/web"], "util/docker/web/foo", false),
            (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
            (&["**/*.md", "!README.md"], "docs/README.md", true),
            (&["!a", "a*"], "abc", true),
        ];
        for (patterns, path, want) in cases {
            let matcher = Matcher::new(*patterns).unwrap();
            assert_eq!(matcher.matches(path).unwrap(), *want, "{patterns:?} {path}");
            let mut parent = Parent::default();
            for (at, _) in path.match_indices('/') {
                parent = matcher.matches_below(&path[..at], &parent).unwrap().1;
            }
            assert_eq!(matcher.matches_below(path, &parent).unwrap().0, *want, "walk {patterns:?} {path}");
        }
    }

    #[test]
    fn rejects() {
        assert_eq!(Matcher::new(["!"]).unwrap_err().to_string(), "illegal exclusion pattern: \"!\"");
        assert_eq!(Matcher::new(["a[]b"]).unwrap_err().to_string(), "syntax error in pattern");
        assert!(Matcher::new(["", "  "]).unwrap().is_empty());
        assert!(Matcher::new(["a", "!b"]).unwrap().has_exclusions());
    }
}
