use super::LockError;
use crate::package::Package;

/// `Gemfile.lock`: sections, and in those of gems and repositories the chosen ones four blanks deep; what these need is deeper.
pub(crate) fn bundler(text: &str) -> Result<Vec<Package>, LockError> {
    let (mut found, mut counts) = (Vec::new(), false);
    for line in text.lines() {
        if !line.starts_with(' ') {
            counts = matches!(line, "GEM" | "GIT");
        }
        let gem = line.strip_prefix("    ").filter(|rest| counts && !rest.starts_with(' ')).and_then(|rest| rest.split_once(" ("));
        found.extend(gem.map(|(name, version)| Package::new("gem", name, version.trim_end_matches(')'))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn gems_but_not_the_project() {
        let text = "PATH\n  remote: .\n  specs:\n    me (0.1)\n\nGEM\n  remote: https://rubygems.org/\n  specs:\n    rack (3.0.8)\n      base64 (>= 0.1)\n    \
                    nokogiri (1.15.4-x86_64-linux)\n\nDEPENDENCIES\n  rack\n";
        assert_eq!(urls(bundler, text), ["pkg:gem/rack@3.0.8", "pkg:gem/nokogiri@1.15.4-x86_64-linux"]);
    }
}
