//! Which system a tree is of.

/// What `os-release` says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Release {
    pub id: String,
    pub version: String,
    pub pretty: String,
}

impl Release {
    pub fn parse(text: &str) -> Self {
        let mut release = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = value.trim_matches(['"', '\'']).to_owned();
            match key {
                "ID" => release.id = value,
                "VERSION_ID" => release.version = value,
                "PRETTY_NAME" => release.pretty = value,
                _ => {}
            }
        }
        release
    }

    /// As package URLs name it; of a tree that does not say, what its packages are commonly of.
    pub fn namespace<'a>(&'a self, common: &'a str) -> &'a str {
        if self.id.is_empty() { common } else { &self.id }
    }

    /// System and version, as package URLs have it. May be empty.
    pub fn distro(&self) -> String {
        match (self.id.as_str(), self.version.as_str()) {
            ("", _) => String::new(),
            (id, "") => id.to_owned(),
            (id, version) => format!("{id}-{version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_missing_versions() {
        let release = Release::parse("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID='12'\n# x\n");
        assert_eq!((release.distro().as_str(), release.pretty.as_str()), ("debian-12", "Debian GNU/Linux 12"));
        assert_eq!(Release::parse("ID=wolfi").distro(), "wolfi");
        assert_eq!((Release::default().distro().as_str(), Release::default().namespace("alpine")), ("", "alpine"));
    }
}
