use std::collections::BTreeMap;

use super::bundle;
use super::error::GitError;
use super::url::{self, Remote};

/// A git source op, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub remote: String,
    /// A branch, a tag, a full reference, a commit; empty for the remote's default branch.
    pub reference: String,
    pub subdir: String,
    /// What the commit's hash must begin with.
    pub checksum: String,
    pub keep_git_dir: bool,
    pub header_secret: String,
    pub token_secret: String,
    /// Which of the client's ssh agents to use; empty for none.
    pub ssh: String,
    pub known_hosts: String,
    pub skip_submodules: bool,
    /// Files get the commit's time.
    pub mtime: String,
    pub fetch_by_commit: bool,
    /// A blob to take the commits from in the place of the remote.
    pub bundle: String,
    pub bundle_session: String,
    pub bundle_store: String,
    /// The result is a bundle, not a checkout.
    pub checkout_bundle: bool,
    pub verify: Option<Verify>,
}

/// Whose signature must be on the commit or the tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verify {
    pub public_key: String,
    pub reject_expired: bool,
    pub require_signed_tag: bool,
    pub ignore_signed_tag: bool,
}

impl Request {
    pub fn new(identifier: &str, attrs: &BTreeMap<String, String>) -> Result<Self, GitError> {
        let invalid = || GitError::Remote { remote: url::redacted(identifier) };
        let Remote { remote, reference, subdir } = Remote::parse(identifier).ok_or_else(invalid)?;
        let mut request = Self { remote, reference, subdir, ..Self::default() };
        for (key, value) in attrs {
            let yes = value == "true";
            match key.as_str() {
                "git.keepgitdir" => request.keep_git_dir = yes,
                "git.fullurl" => request.remote = url::with_scheme(value),
                "git.authheadersecret" => request.header_secret = value.clone(),
                "git.authtokensecret" => request.token_secret = value.clone(),
                "git.knownsshhosts" => request.known_hosts = value.clone(),
                "git.mountsshsock" => request.ssh = value.clone(),
                "git.checksum" => request.checksum = value.clone(),
                "git.skipsubmodules" => request.skip_submodules = yes,
                "git.mtime" => request.mtime = value.clone(),
                "git.fetchbycommit" => request.fetch_by_commit = yes,
                "git.bundle" => request.bundle = value.clone(),
                "git.checkoutbundle" => request.checkout_bundle = yes,
                "oci.session" => request.bundle_session = value.clone(),
                "oci.store" => request.bundle_store = value.clone(),
                "git.sig.pubkey" => request.verify_mut().public_key = value.clone(),
                "git.sig.rejectexpired" => request.verify_mut().reject_expired = yes,
                "git.sig.requiresignedtag" => request.verify_mut().require_signed_tag = yes,
                "git.sig.ignoresignedtag" => request.verify_mut().ignore_signed_tag = yes,
                _ => {}
            }
        }
        request.check()?;
        Ok(request)
    }

    fn verify_mut(&mut self) -> &mut Verify {
        self.verify.get_or_insert_default()
    }

    fn check(&self) -> Result<(), GitError> {
        check_reference(&self.reference)?;
        // It ends up on git's command line.
        if self.remote.starts_with('-') {
            return Err(GitError::Remote { remote: self.remote.clone() });
        }
        if !self.checksum.is_empty() && !self.checksum.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(GitError::Checksum { checksum: self.checksum.clone() });
        }
        if !self.bundle.is_empty() {
            bundle::locate(self)?;
            if self.checksum.is_empty() {
                return Err(GitError::Options("git.bundle requires git.checksum to be set"));
            }
            if is_commit(&self.reference) {
                self.expect_checksum(&self.reference)?;
            }
        }
        match self.checkout_bundle {
            true if self.keep_git_dir => Err(GitError::Options("git.checkoutbundle is incompatible with git.keepgitdir")),
            true if !self.subdir.is_empty() => Err(GitError::Options("git.checkoutbundle is incompatible with git.subdir")),
            _ => Ok(()),
        }
    }

    /// Whether `commit` is the one that the op insists on.
    pub fn expect_checksum(&self, commit: &str) -> Result<(), GitError> {
        match commit.starts_with(&self.checksum) {
            true => Ok(()),
            false => Err(GitError::Mismatch { expected: self.checksum.clone(), actual: commit.to_owned() }),
        }
    }

    /// The remote as people may see it.
    pub fn shown(&self) -> String {
        url::redacted(&self.remote)
    }

    /// The source's name: host and path of the remote, without user names.
    pub fn identifier(&self) -> String {
        let mut name = format!("git://{}", url::host_and_path(&self.remote));
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            name.push_str(&format!("#{}", self.reference));
        }
        if !self.subdir.is_empty() {
            name.push_str(&format!(":{}", self.subdir));
        }
        name
    }

    /// The cache key's text for a commit (or tag) that was found under `reference`.
    pub fn key_text(&self, commit: &str, reference: &str) -> String {
        let mut key = commit.to_owned();
        if self.keep_git_dir {
            key.push_str(".git");
            if !reference.is_empty() {
                key.push_str(&format!("#{reference}"));
            }
        }
        if !self.subdir.is_empty() {
            key.push_str(&format!(":{}", self.subdir));
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if !matches!(self.mtime.as_str(), "" | "checkout") {
            key.push_str(&format!("(mtime={})", self.mtime));
        }
        if self.checkout_bundle {
            key.push_str("(bundle)");
        }
        key
    }
}

/// A full hash, of either kind that git has.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// One that begins like an option would be taken for one.
pub(super) fn check_reference(reference: &str) -> Result<(), GitError> {
    if reference.starts_with('-') { Err(GitError::Reference { reference: reference.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(identifier: &str, attrs: &[(&str, &str)]) -> Result<Request, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Request::new(identifier, &attrs).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_are_upstreams() {
        let plain = request("h/a.git#v1", &[]).unwrap();
        assert_eq!(plain.key_text("abc", "refs/tags/v1"), "abc");
        let kept = request("h/a.git#v1:d", &[("git.keepgitdir", "true"), ("git.skipsubmodules", "true"), ("git.mtime", "commit")]).unwrap();
        assert_eq!(kept.key_text("abc", "refs/tags/v1"), "abc.git#refs/tags/v1:d(skip-submodules)(mtime=commit)");
        let bundle = request("h/a.git", &[("git.checkoutbundle", "true"), ("git.mtime", "checkout")]).unwrap();
        assert_eq!(bundle.key_text("abc", "m"), "abc(bundle)");
    }

    #[test]
    fn names_are_made_of_the_real_remote() {
        for (url, name) in [
            ("https://u:p@h:1/a//b.git", "git://h:1/a/b.git#v1:d"),
            ("git@h:a/b.git", "git://h/a/b.git#v1:d"),
            ("ssh://git@h", "git://h/#v1:d"),
        ] {
            assert_eq!(request("x/y#v1:d", &[("git.fullurl", url)]).unwrap().identifier(), name);
        }
        assert_eq!(request("h/a", &[]).unwrap().identifier(), "git://h/a");
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert_eq!(request("h/a#-x", &[]).unwrap_err(), "invalid git ref \"-x\"");
        assert_eq!(request("h/a", &[("git.checksum", "xyz")]).unwrap_err(), "invalid checksum xyz for Git URL, expected hex commit hash");
        let bundle = format!("docker-image+blob://r/b@sha256:{}", "0".repeat(64));
        assert_eq!(request("h/a", &[("git.bundle", &bundle)]).unwrap_err(), "git.bundle requires git.checksum to be set");
        for (locator, problem) in
            [("x", "missing scheme"), ("https://h/b", "unsupported scheme"), ("docker-image+blob://r/b", "invalid reference")]
        {
            let error = request("h/a", &[("git.bundle", locator), ("git.checksum", "ab")]).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        assert!(request("h/a#:d", &[("git.checkoutbundle", "true")]).unwrap_err().ends_with("git.subdir"));
    }

    #[test]
    fn reads_attributes() {
        let full = request("h/a", &[("git.fullurl", "ssh://git@h/a"), ("git.mountsshsock", "default"), ("git.sig.pubkey", "k")]).unwrap();
        assert_eq!((full.remote.as_str(), full.ssh.as_str()), ("ssh://git@h/a", "default"));
        assert_eq!(full.verify, Some(Verify { public_key: "k".into(), ..Verify::default() }));
        assert_eq!(request("h/a", &[("git.fullurl", "h/b")]).unwrap().remote, "https://h/b");
    }
}
