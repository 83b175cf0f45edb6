//! What a build was made from, each with the digest that it was pinned to.
use std::collections::BTreeMap;

use dockerfile::GitRef;
use fault::{Fault, Result};
use oci::{Digest, Platform, Reference};
use serde::Serialize;

use crate::provenance::request::{LocalSource, redacted};

/// Hex digests by algorithm.
pub type DigestSet = BTreeMap<String, String>;

/// One thing that went into a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Material {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: DigestSet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    pub reference: String,
    pub platform: Option<Platform>,
    pub digest: Option<Digest>,
    /// From a layout of the client, not from a registry.
    pub local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSource {
    pub reference: String,
    pub digest: Option<Digest>,
    pub local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    /// With `#ref` where there is one.
    pub url: String,
    pub commit: String,
    /// Where the commits came from instead of the repository: `<scheme>://<reference>@<digest>`.
    pub bundle: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSource {
    pub url: String,
    pub digest: Option<Digest>,
}

/// Each kind holds no two that name the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    pub images: Vec<ImageSource>,
    pub blobs: Vec<BlobSource>,
    pub git: Vec<GitSource>,
    pub http: Vec<HttpSource>,
    pub local: Vec<LocalSource>,
}

impl Sources {
    pub fn add_image(&mut self, image: ImageSource) {
        // OS features do not tell images of an index apart.
        let place = |p: &Platform| (p.architecture.clone(), p.os.clone(), p.os_version.clone(), p.variant.clone());
        let same = |known: &ImageSource| {
            known.reference == image.reference
                && known.local == image.local
                && known.platform.as_ref().map(place) == image.platform.as_ref().map(place)
        };
        if !self.images.iter().any(same) {
            self.images.push(image);
        }
    }

    pub fn add_blob(&mut self, blob: BlobSource) {
        if !self.blobs.iter().any(|known| known.reference == blob.reference && known.local == blob.local) {
            self.blobs.push(blob);
        }
    }

    pub fn add_git(&mut self, git: GitSource) {
        let git = GitSource { url: redacted(&git.url), ..git };
        if !self.git.iter().any(|known| known.url == git.url && known.bundle == git.bundle) {
            self.git.push(git);
        }
    }

    pub fn add_http(&mut self, http: HttpSource) {
        let http = HttpSource { url: redacted(&http.url), ..http };
        if !self.http.iter().any(|known| known.url == http.url) {
            self.http.push(http);
        }
    }

    pub fn add_local(&mut self, name: &str) {
        if !self.local.iter().any(|known| known.name == name) {
            self.local.push(LocalSource { name: name.to_owned() });
        }
    }

    pub fn merge(&mut self, other: &Self) {
        other.images.iter().cloned().for_each(|s| self.add_image(s));
        other.blobs.iter().cloned().for_each(|s| self.add_blob(s));
        other.local.iter().for_each(|s| self.add_local(&s.name));
        other.git.iter().cloned().for_each(|s| self.add_git(s));
        other.http.iter().cloned().for_each(|s| self.add_http(s));
    }

    pub fn sort(&mut self) {
        self.images.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.blobs.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.local.sort();
        self.git.sort_by(|a, b| a.url.cmp(&b.url));
        self.http.sort_by(|a, b| a.url.cmp(&b.url));
    }

    /// Leaves out images by digest that are there by tag as well: frontends pin what they resolve.
    pub fn without_pinned_twins(&mut self) -> Result<()> {
        let mut parsed = Vec::with_capacity(self.images.len());
        for image in &self.images {
            let reference: Reference =
                image.reference.parse().map_err(|e| Fault::invalid(format!("failed to parse ref {:?}: {e}", image.reference)))?;
            let tagged = format!("{}:{}", reference.name(), reference.tag().unwrap_or("latest"));
            parsed.push((reference.digest().is_some(), tagged));
        }
        let by_tag: Vec<&String> = parsed.iter().filter(|(pinned, _)| !pinned).map(|(_, tagged)| tagged).collect();
        let mut keep = parsed.iter().map(|(pinned, tagged)| !pinned || !by_tag.contains(&tagged));
        self.images.retain(|_| keep.next().unwrap_or(true));
        Ok(())
    }

    pub fn materials(&self) -> Result<Vec<Material>> {
        let mut all = Vec::new();
        for image in &self.images {
            let uri = export::purl(kind(image.local), &image.reference, image.platform.as_ref())?;
            all.push(Material { uri, digest: set(image.digest.as_ref()) });
        }
        for blob in &self.blobs {
            let uri = qualified(export::purl(kind(blob.local), &blob.reference, None)?, &[("ref_type", "blob")]);
            all.push(Material { uri, digest: set(blob.digest.as_ref()) });
        }
        for git in &self.git {
            all.push(Material { uri: git.url.clone(), digest: commit_set(&git.commit) });
            if let Some(bundle) = &git.bundle {
                all.extend(bundle_material(bundle, &git.url)?);
            }
        }
        for http in &self.http {
            all.push(Material { uri: http.url.clone(), digest: set(http.digest.as_ref()) });
        }
        Ok(all)
    }

    /// The material that a context's address stands for.
    pub fn find(&self, address: &str) -> Option<Material> {
        let parsed = GitRef::parse(address).and_then(|parsed| parsed.ok());
        let (shown, plain) = match &parsed {
            Some(git) => (fragment(git, true), fragment(git, false)),
            None => (address.to_owned(), address.to_owned()),
        };
        let git = self.git.iter().find(|git| git.url == plain).map(|git| Material { uri: shown, digest: commit_set(&git.commit) });
        git.or_else(|| {
            let http = self.http.iter().find(|http| http.url == plain)?;
            Some(Material { uri: http.url.clone(), digest: set(http.digest.as_ref()) })
        })
    }
}

fn kind(local: bool) -> &'static str {
    if local { "oci" } else { "docker" }
}

fn set(digest: Option<&Digest>) -> DigestSet {
    digest.map(|d| (d.algorithm().to_owned(), d.hex().to_owned())).into_iter().collect()
}

fn commit_set(commit: &str) -> DigestSet {
    if commit.is_empty() {
        return DigestSet::new();
    }
    DigestSet::from([(if commit.len() == 64 { "sha256" } else { "sha1" }.to_owned(), commit.to_owned())])
}

/// Where the commits of a repository came from. `None` for a locator that is none, which the source itself refuses.
fn bundle_material(locator: &str, repository: &str) -> Result<Option<Material>> {
    let Some((scheme, body)) = locator.split_once("://") else { return Ok(None) };
    let Some((reference, digest)) = body.rsplit_once('@') else { return Ok(None) };
    let Ok(digest) = digest.parse::<Digest>() else { return Ok(None) };
    let uri = export::purl(kind(scheme == "oci-layout+blob"), reference, None)?;
    Ok(Some(Material { uri: qualified(uri, &[("ref_type", "bundle"), ("vcs_url", repository)]), digest: set(Some(&digest)) }))
}

/// A package URL with more qualifiers, all of them in the order of their names.
fn qualified(url: String, more: &[(&str, &str)]) -> String {
    let (base, query) = url.split_once('?').unwrap_or((&url, ""));
    let added = more.iter().map(|(key, value)| format!("{key}={}", export::escape_query(value)));
    let mut all: Vec<String> = query.split('&').filter(|q| !q.is_empty()).map(str::to_owned).chain(added).collect();
    all.sort();
    format!("{base}?{}", all.join("&"))
}

fn fragment(git: &GitRef, with_subdir: bool) -> String {
    let subdir = if with_subdir { git.subdir.trim_start_matches('/') } else { "" };
    match (git.reference.as_str(), subdir) {
        ("", "") => git.remote.clone(),
        (reference, "") => format!("{}#{reference}", git.remote),
        (reference, subdir) => format!("{}#{reference}:{subdir}", git.remote),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, platform: Option<&str>) -> ImageSource {
        let platform = platform.map(|p| p.parse().unwrap());
        ImageSource { reference: reference.into(), platform, digest: Some(Digest::of(reference)), local: false }
    }

    #[test]
    fn an_image_by_tag_hides_the_same_by_digest() {
        let pinned = format!("docker.io/library/a:latest@{}", Digest::of("x"));
        let other = format!("docker.io/library/b@{}", Digest::of("x"));
        let mut sources = Sources::default();
        for reference in [pinned.as_str(), "docker.io/library/a:latest", "docker.io/library/a:latest", &other] {
            sources.add_image(image(reference, None));
        }
        sources.without_pinned_twins().unwrap();
        let left: Vec<&str> = sources.images.iter().map(|i| i.reference.as_str()).collect();
        assert_eq!(left, ["docker.io/library/a:latest", &other]);
    }

    #[test]
    fn materials_name_every_kind() {
        let hex = |text: &str| Digest::of(text).hex().to_owned();
        let mut sources = Sources::default();
        sources.add_image(image("docker.io/library/a:1", Some("linux/arm64")));
        sources.add_blob(BlobSource {
            reference: format!("docker.io/library/b@{}", Digest::of("b")),
            digest: Some(Digest::of("b")),
            local: true,
        });
        let bundle = format!("docker-image+blob://docker.io/u/c@{}", Digest::of("c"));
        sources.add_git(GitSource { url: "https://u:p@h/x.git#v1".into(), commit: "ab".repeat(20), bundle: Some(bundle) });
        sources.add_http(HttpSource { url: "https://h/y".into(), digest: Some(Digest::of("y")) });
        let found: Vec<String> = sources.materials().unwrap().iter().map(|m| format!("{} {:?}", m.uri, m.digest)).collect();
        let sha256 = |text: &str| format!("{:?}", DigestSet::from([("sha256".to_owned(), hex(text))]));
        assert_eq!(
            found,
            [
                format!("pkg:docker/a@1?platform=linux%2Farm64 {}", sha256("docker.io/library/a:1")),
                format!("pkg:oci/b?digest=sha256:{}&ref_type=blob {}", hex("b"), sha256("b")),
                format!("https://xxxxx:xxxxx@h/x.git#v1 {:?}", DigestSet::from([("sha1".to_owned(), "ab".repeat(20))])),
                format!("pkg:docker/u/c@latest?ref_type=bundle&vcs_url=https:%2F%2Fxxxxx:xxxxx@h%2Fx.git%23v1 {}", sha256("c")),
                format!("https://h/y {}", sha256("y")),
            ]
        );
    }

    #[test]
    fn a_context_is_found_among_materials() {
        let mut sources = Sources::default();
        sources.add_git(GitSource { url: "https://h/x.git#v1".into(), commit: "c".repeat(64), bundle: None });
        let found = sources.find("https://h/x.git#v1:sub").unwrap();
        assert_eq!((found.uri.as_str(), found.digest), ("https://h/x.git#v1:sub", commit_set(&"c".repeat(64))));
        assert_eq!(sources.find("https://h/x.git"), None);
    }
}
