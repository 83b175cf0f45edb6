//! What a client may send: clean relative paths, in order, parents first, hard links to earlier files only.
use std::collections::HashSet;

use session::{Stat, go_mode};

use super::error::LocalError;

/// Checks entries one after the other.
#[derive(Default)]
pub(crate) struct Validator {
    /// The directories on the way to the last entry, each with the name of its last child.
    open: Vec<Open>,
    /// Files that a hard link may name.
    files: HashSet<String>,
}

struct Open {
    dir: String,
    last: String,
}

impl Validator {
    pub fn check(&mut self, stat: &Stat) -> Result<(), LocalError> {
        let path = stat.path.as_str();
        clean(path)?;
        let (dir, base) = path.rsplit_once('/').unwrap_or(("", path));
        if self.open.is_empty() {
            self.open.push(Open { dir: String::new(), last: String::new() });
        }
        while self.open.len() > 1 && self.open.last().is_some_and(|open| open.dir != dir) {
            self.open.pop();
        }
        let open = self.open.last_mut().expect("the root stays open");
        if open.dir != dir || open.last.as_str() >= base {
            let last = if open.dir.is_empty() { open.last.clone() } else { format!("{}/{}", open.dir, open.last) };
            return Err(LocalError::Order { path: path.to_owned(), last });
        }
        open.last = base.to_owned();
        if stat.mode & go_mode::DIR != 0 {
            self.open.push(Open { dir: path.to_owned(), last: String::new() });
        } else if stat.mode & go_mode::SYMLINK == 0 {
            if stat.linkname.is_empty() {
                self.files.insert(path.to_owned());
            } else if !self.files.contains(&stat.linkname) {
                return Err(LocalError::Link { path: path.to_owned(), target: stat.linkname.clone() });
            }
        }
        Ok(())
    }
}

fn clean(path: &str) -> Result<(), LocalError> {
    let error = |problem| Err(LocalError::Path { path: path.to_owned(), problem });
    if path.starts_with('/') {
        return error("absolute path");
    }
    if path.split('/').any(|part| part == "..") {
        return error("escape check");
    }
    if path.is_empty() || path.contains('\0') || path.split('/').any(|part| part.is_empty() || part == ".") {
        return error("unclean path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[(&str, u32, &str)]) -> Result<(), LocalError> {
        let mut validator = Validator::default();
        entries.iter().try_for_each(|(path, mode, link)| {
            validator.check(&Stat { path: (*path).into(), mode: *mode, linkname: (*link).into(), ..Stat::default() })
        })
    }

    const D: u32 = go_mode::DIR;

    #[test]
    fn accepts_what_a_walk_gives() {
        check(&[("a", D, ""), ("a/b", D, ""), ("a/b/c", 0, ""), ("a/d", 0, "a/b/c"), ("a.b", 0, ""), ("b", go_mode::SYMLINK, "../../x")])
            .unwrap();
    }

    #[test]
    fn refuses_the_rest() {
        for (bad, text) in [
            (&[("/a", 0, "")][..], "absolute path /a: invalid argument"),
            (&[("../a", 0, "")], "escape check ../a: invalid argument"),
            (&[("a/../b", 0, "")], "escape check a/../b: invalid argument"),
            (&[("a//b", 0, "")], "unclean path a//b: invalid argument"),
            (&[("", 0, "")], "unclean path : invalid argument"),
            (&[("b", 0, ""), ("a", 0, "")], "changes out of order: \"a\" \"b\""),
            (&[("a", 0, ""), ("a", 0, "")], "changes out of order: \"a\" \"a\""),
            (&[("a/b", 0, "")], "changes out of order: \"a/b\" \"\""),
            (&[("a", 0, ""), ("a/b", 0, "")], "changes out of order: \"a/b\" \"a\""),
            (&[("a", go_mode::SYMLINK, "x"), ("a/b", 0, "")], "changes out of order: \"a/b\" \"a\""),
            (&[("a", D, ""), ("b", D, ""), ("a/c", 0, "")], "changes out of order: \"a/c\" \"b\""),
            (&[("a", 0, "z")], "invalid link a to unknown path: \"z\""),
            (&[("a", D, ""), ("b", 0, "a")], "invalid link b to unknown path: \"a\""),
        ] {
            assert_eq!(check(bad).unwrap_err().to_string(), text);
        }
    }
}
