//! Which entries of a tree are sent: include and exclude patterns, and links that are followed into includes.
use std::path::Path;

use patterns::{Matcher, MatcherError, Parent, Pattern};

use super::follow;

#[derive(Debug, Default)]
pub struct Filter {
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    /// All includes are plain prefixes, so that directories which no include lies in can be left out unread.
    plain_includes: bool,
    /// The same for the exceptions of excludes.
    plain_exceptions: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Take,
    /// Not taken, but something below may be.
    Pass,
    /// Neither this nor anything below.
    Skip,
}

impl Filter {
    /// Reads links below `root` to see where `follow` paths lead. Blocking.
    pub fn new(root: &Path, include: &[String], exclude: &[String], follow: &[String]) -> Result<Self, MatcherError> {
        let mut includes = include.to_vec();
        if !follow.is_empty()
            && let Some(followed) = follow::targets(root, follow)
        {
            includes.extend(followed);
            includes = follow::without_nested(includes).unwrap_or_default();
        }
        let matcher = |patterns: &[String]| if patterns.is_empty() { Ok(None) } else { Matcher::new(patterns).map(Some) };
        let (include, exclude) = (matcher(&includes)?, matcher(exclude)?);
        let plain = |matcher: &Option<Matcher>, exceptions| {
            let mut patterns = matcher.iter().flat_map(Matcher::patterns).filter(|p| p.is_exclusion() == exceptions);
            patterns.all(|p| !without_glob(p).contains(['*', '[', ']', '?', '^', '\\']))
        };
        let (plain_includes, plain_exceptions) = (plain(&include, false), plain(&exclude, true));
        Ok(Self { include, exclude, plain_includes, plain_exceptions })
    }

    /// Judges an entry; `above` is what this returned for its directory (the default at the root).
    pub fn judge(&self, path: &str, is_dir: bool, above: &(Parent, Parent)) -> Result<(Verdict, (Parent, Parent)), MatcherError> {
        let (mut verdict, mut below) = (Verdict::Take, (Parent::default(), Parent::default()));
        let lies_in = |matcher: &Matcher, exceptions| {
            let directory = format!("{path}/");
            let mut patterns = matcher.patterns().iter().filter(|p| p.is_exclusion() == exceptions);
            patterns.any(|p| format!("{}/", without_glob(p)).starts_with(&directory))
        };
        if let Some(include) = &self.include {
            let (matched, parent) = include.matches_below(path, &above.0)?;
            below.0 = parent;
            if !matched {
                if is_dir && self.plain_includes && !lies_in(include, false) {
                    return Ok((Verdict::Skip, below));
                }
                verdict = Verdict::Pass;
            }
        }
        if let Some(exclude) = &self.exclude {
            let (matched, parent) = exclude.matches_below(path, &above.1)?;
            below.1 = parent;
            if matched {
                if is_dir && self.plain_exceptions && !lies_in(exclude, true) {
                    return Ok((Verdict::Skip, below));
                }
                verdict = Verdict::Pass;
            }
        }
        Ok((verdict, below))
    }
}

fn without_glob(pattern: &Pattern) -> &str {
    let text = pattern.text();
    let text = text.strip_suffix("/**").unwrap_or(text);
    text.strip_suffix("/*").unwrap_or(text)
}
