use super::LockError;
use crate::package::Package;

/// A module; Go's names are lower-case in package URLs.
pub(crate) fn module(name: &str, version: &str) -> Package {
    Package::in_namespace("golang", &name.to_lowercase(), version)
}

/// `go.mod`, with its replacements. What requirements require in turn is in it too since Go 1.17.
pub(crate) fn requirements(text: &str) -> Result<Vec<Package>, LockError> {
    let (mut found, mut replaced, mut block) = (Vec::new(), Vec::new(), None);
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (directive, rest) = match (block, words.as_slice()) {
            (_, []) => continue,
            (Some(_), [")"]) => {
                block = None;
                continue;
            }
            (None, [directive, "("]) => {
                block = Some(*directive);
                continue;
            }
            (Some(directive), rest) => (directive, rest),
            (None, [directive, rest @ ..]) => (*directive, rest),
        };
        match (directive, rest) {
            ("require", [name, version]) => found.push(((*name).to_owned(), (*version).to_owned())),
            // What stands for a version is that version everywhere; a directory has none and is seen by its own files.
            ("replace", [name, .., "=>", other, version]) => {
                replaced.push(((*name).to_owned(), (*other).to_owned(), (*version).to_owned()))
            }
            _ => {}
        }
    }
    for (name, version) in &mut found {
        if let Some((_, other, chosen)) = replaced.iter().find(|(old, ..)| old == name) {
            (*name, *version) = (other.clone(), chosen.clone());
        }
    }
    Ok(found.iter().map(|(name, version)| module(name, version)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn blocks_lines_and_replacements() {
        let text = "module x.org/m\n\ngo 1.22\n\nrequire (\n\tgithub.com/A/b v1.0.0\n\tx.org/old v0.1.0 // indirect\n)\nrequire y.org/z v2.0.0+incompatible\n\
                    replace x.org/old => x.org/new v0.2.0\nexclude y.org/z v1.0.0\n";
        let want = ["pkg:golang/github.com/a/b@v1.0.0", "pkg:golang/x.org/new@v0.2.0", "pkg:golang/y.org/z@v2.0.0%2Bincompatible"];
        assert_eq!(urls(requirements, text), want);
    }
}
