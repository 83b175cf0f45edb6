//! Bundles: a repository's commits as one file, taken from a blob in the place of the remote, or made in the place of a checkout.
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fault::{Context as _, Result};
use layers::{Layer, Properties};
use tokio::io::AsyncWriteExt as _;

use super::cli::Git;
use super::error::GitError;
use super::repository::{Repository, init_bare};
use super::request::{Request, is_commit};
use crate::blob::{self, Incoming};
use crate::scheme::{self, Scheme};
use crate::store::{Context, Shared};

/// What the file in a result is called.
const FILE: &str = "bundle";
/// A commit without a name has this one in a bundle.
const NAMELESS: &str = "refs/heads/main";

/// The blob that a request's bundle is.
pub(super) fn locate(request: &Request) -> Result<blob::Request, GitError> {
    let locator = request.bundle.as_str();
    let invalid = |problem| GitError::Bundle { locator: locator.to_owned(), problem };
    let Some((_, name)) = locator.split_once("://") else { return Err(invalid("missing scheme")) };
    let scheme = match scheme::split(locator) {
        Ok((scheme @ (Scheme::ImageBlob | Scheme::LayoutBlob), _)) => scheme,
        _ => return Err(invalid("unsupported scheme; expected \"docker-image+blob\" or \"oci-layout+blob\"")),
    };
    // A layout that is not named is called like the image.
    let store = match request.bundle_store.as_str() {
        "" => name.split_once('@').map_or(name, |(image, _)| image),
        store => store,
    };
    let attrs = [("oci.store", store), ("oci.session", request.bundle_session.as_str())];
    let attrs: BTreeMap<String, String> = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    blob::Request::new(scheme, name, &attrs).map_err(|_| invalid("invalid reference or digest"))
}

/// A bundle's commits in a repository of their own, which git can fetch from. It is removed when this drops.
pub(super) struct Staged(Scratch);

impl Staged {
    pub async fn fetch(shared: &Shared, request: &Request, git: &Git<'_>, context: &Context) -> Result<Self> {
        let scratch = Scratch::new(&shared.git.scratch)?;
        let (pack, locator) = (scratch.0.join("bundle.pack"), request.bundle.as_str());
        let blob = locate(request)?;
        let downloaded = context.cancel.run(download(shared, &blob, &pack, context)).await;
        downloaded.with_context(|| format!("failed to fetch git bundle {locator}"))?;
        let pack = pack.to_string_lossy();
        let listed = git.text(&["ls-remote", "--", &pack]).await.with_context(|| format!("failed to inspect git bundle {locator}"))?;
        let first = listed.split_whitespace().next().ok_or_else(|| GitError::EmptyBundle { locator: locator.to_owned() })?;
        let staged = Self(scratch);
        let repository = staged.dir();
        std::fs::create_dir(&repository)?;
        let git = git.in_repository(&repository);
        init_bare(&git, first.len() == 64).await.context("failed to init a repository for a bundle")?;
        let imported = git.run(&["fetch", &pack, "+refs/*:refs/*"]).await;
        imported.with_context(|| format!("failed to import git bundle {locator}"))?;
        if !git.succeeds(&["cat-file", "-e", &format!("{}^{{commit}}", request.checksum)]).await? {
            return Err(GitError::NotInBundle { commit: request.checksum.clone(), locator: locator.to_owned() }.into());
        }
        Ok(staged)
    }

    pub fn url(&self) -> String {
        file_url(&self.dir())
    }

    fn dir(&self) -> PathBuf {
        self.0.0.join("repo.git")
    }
}

/// A layer with nothing but a bundle that has the wanted commit under the reference's own name.
pub(super) async fn create(shared: &Shared, request: &Request, repository: &Repository<'_>) -> Result<Layer> {
    let git = repository.git();
    let wanted = if request.checksum.is_empty() { &repository.wanted } else { &request.checksum };
    let commit = git.text(&["rev-parse", wanted]).await?;
    let scratch = Scratch::new(&shared.git.scratch)?;
    let (dir, file) = (scratch.0.join("repo.git"), scratch.0.join("out.bundle"));
    std::fs::create_dir(&dir)?;
    // The shared repository's own names are none of the bundle's.
    let own = git.in_repository(&dir);
    init_bare(&own, repository.sha256).await.context("failed to init a repository for a bundle")?;
    let fetched = own.run(&["fetch", &file_url(&repository.dir), "--", &commit]).await;
    fetched.with_context(|| format!("failed to fetch commit {commit} from shared repo for bundle creation"))?;
    let name = name(&request.reference);
    own.run(&["update-ref", &name, &commit]).await?;
    let created = own.run(&["bundle", "create", &file.to_string_lossy(), &name]).await;
    created.with_context(|| format!("failed to create git bundle for {commit}"))?;
    let description = format!("git bundle checkout for {}#{}", request.shown(), request.reference);
    let draft = shared.layers.draft(None, Properties::new(description).of_type("source.git.checkout"))?;
    task::blocking(move || {
        let place = draft.own_files().join(FILE);
        std::fs::copy(&file, &place)?;
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o644))?;
        drop(scratch);
        Ok(draft.commit()?)
    })
    .await
}

/// In full. A short name is taken for a branch, as it cannot be told.
fn name(reference: &str) -> String {
    match reference {
        "" => NAMELESS.to_owned(),
        commit if is_commit(commit) => NAMELESS.to_owned(),
        tag if tag.starts_with("refs/tags/") => tag.to_owned(),
        branch => {
            let short = branch.strip_prefix("refs/").unwrap_or(branch);
            format!("refs/heads/{}", short.strip_prefix("heads/").unwrap_or(short))
        }
    }
}

async fn download(shared: &Shared, blob: &blob::Request, path: &Path, context: &Context) -> Result<()> {
    let mut incoming = Incoming::open(shared, blob, context).await?;
    let mut file = tokio::fs::File::create_new(path).await?;
    while let Some(chunk) = incoming.next().await? {
        file.write_all(&chunk).await?;
    }
    Ok(file.flush().await?)
}

/// With a scheme, git takes no shortcuts of local clones.
fn file_url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = parent.join(format!("bundle-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        // What a daemon that was killed left.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).context("failed to create a directory for a git bundle")?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_bundles_are_the_remotes() {
        let commit = "a".repeat(40);
        for (reference, expected) in [
            ("", NAMELESS),
            (commit.as_str(), NAMELESS),
            ("main", "refs/heads/main"),
            ("refs/heads/a/b", "refs/heads/a/b"),
            ("refs/tags/v1", "refs/tags/v1"),
            ("v1", "refs/heads/v1"),
        ] {
            assert_eq!(name(reference), expected);
        }
    }
}
