//! A package and its URL.
use std::collections::BTreeMap;

/// A piece of software as some package manager knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// The type in its package URL: `deb`, `npm`, …
    pub kind: &'static str,
    /// Parts divided by `/`; may be empty.
    pub namespace: String,
    pub name: String,
    pub version: String,
    /// Of the package URL; empty values are left out.
    pub qualifiers: BTreeMap<&'static str, String>,
    /// As the package itself words it, which is seldom an SPDX expression; may be empty.
    pub license: String,
    /// Who made it, as the package itself says; may be empty.
    pub supplier: String,
}

impl Package {
    pub fn new(kind: &'static str, name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { kind, name: name.into(), version: version.into(), ..Self::default() }
    }

    /// `name` up to its last slash is the namespace.
    pub(crate) fn in_namespace(kind: &'static str, name: &str, version: impl Into<String>) -> Self {
        let (namespace, name) = name.rsplit_once('/').unwrap_or(("", name));
        Self { namespace: namespace.to_owned(), ..Self::new(kind, name, version) }
    }

    pub(crate) fn qualify(&mut self, key: &'static str, value: impl Into<String>) {
        self.qualifiers.insert(key, value.into());
    }

    /// With the namespace, as people write it.
    pub fn full_name(&self) -> String {
        // Of a system's package the namespace is the system.
        match self.kind {
            "deb" | "apk" | "rpm" => self.name.clone(),
            _ if self.namespace.is_empty() => self.name.clone(),
            _ => format!("{}/{}", self.namespace, self.name),
        }
    }

    /// With the epoch, which a package URL has apart, as people write it.
    pub(crate) fn full_version(&self) -> String {
        match self.qualifiers.get("epoch").filter(|epoch| !epoch.is_empty()) {
            Some(epoch) => format!("{epoch}:{}", self.version),
            None => self.version.clone(),
        }
    }
}

/// The package URL (<https://github.com/package-url/purl-spec>).
pub fn purl(package: &Package) -> String {
    let mut url = format!("pkg:{}", package.kind);
    for part in package.namespace.split('/').chain([package.name.as_str()]).filter(|part| !part.is_empty()) {
        url.push('/');
        escape(&mut url, part);
    }
    if !package.version.is_empty() {
        url.push('@');
        escape(&mut url, &package.version);
    }
    let qualifiers = package.qualifiers.iter().filter(|(_, value)| !value.is_empty());
    for (at, (key, value)) in qualifiers.enumerate() {
        url.push(if at == 0 { '?' } else { '&' });
        url.push_str(key);
        url.push('=');
        escape(&mut url, value);
    }
    url
}

fn escape(url: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => url.push(byte.into()),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_the_specification() {
        let mut curl = Package { namespace: "debian".into(), ..Package::new("deb", "libstdc++6", "1:12.2.0-14+b1") };
        curl.qualify("distro", "debian-12");
        curl.qualify("arch", "amd64");
        curl.qualify("upstream", "");
        assert_eq!(purl(&curl), "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bb1?arch=amd64&distro=debian-12");
        assert_eq!(purl(&Package::in_namespace("npm", "@babel/core", "7.1.0")), "pkg:npm/%40babel/core@7.1.0");
        assert_eq!(purl(&Package::in_namespace("golang", "github.com/a/b", "v1")), "pkg:golang/github.com/a/b@v1");
        assert_eq!(purl(&Package::new("gem", "rake", "")), "pkg:gem/rake");
    }
}
