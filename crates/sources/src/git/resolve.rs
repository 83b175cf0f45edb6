//! Finds out which commit a reference stands for.
use std::sync::Arc;

use fault::{Context as _, Result};

use super::auth::Access;
use super::bundle::Staged;
use super::cli::Git;
use super::error::GitError;
use super::repository::Repository;
use super::request::{Request, check_reference, is_commit};
use super::url;
use crate::store::{Context, Shared};

/// What a reference stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pin {
    /// In full, such as `refs/heads/main`; a commit stands for itself.
    pub reference: String,
    /// Of the commit, or of the tag object that leads to it.
    pub checksum: String,
    /// Of the commit, where [`Self::checksum`] is of a tag object.
    pub commit_checksum: String,
}

impl Pin {
    pub(super) fn commit(commit: &str) -> Self {
        Self { reference: commit.to_owned(), checksum: commit.to_owned(), commit_checksum: String::new() }
    }

    /// What the cache is keyed by: without a `.git` directory a tag is as good as its commit.
    pub fn keyed_by(&self, request: &Request) -> &str {
        if self.commit_checksum.is_empty() || request.keep_git_dir { &self.checksum } else { &self.commit_checksum }
    }
}

pub(super) async fn resolve(shared: &Shared, request: &Request, context: &Context) -> Result<Pin> {
    if is_commit(&request.reference) {
        request.expect_checksum(&request.reference)?;
        return Ok(Pin::commit(&request.reference));
    }
    if !request.bundle.is_empty() {
        return in_bundle(shared, request, context).await;
    }
    if request.fetch_by_commit {
        return Ok(by_commit(request)?);
    }
    // Within a client's session a reference stands for one commit, however often it is asked for.
    let memory =
        context.sessions.all().first().map(|session| (session.id().to_owned(), format!("{}#{}", request.remote, request.reference)));
    if let Some(known) = memory.as_ref().and_then(|memory| shared.references.get(memory)).filter(|found| request.accepts(found)) {
        return Ok(known.pin(request));
    }
    let access = Access::open(&shared.git, request, context).await?;
    let found = ask(&access.git, request, &request.remote).await?;
    let pin = found.pin(request);
    if let Some(memory) = memory {
        shared.references.put(memory, Arc::new(found));
    }
    Ok(pin)
}

/// A bundle is looked into only for what the reference's name means; then its commits are kept, so that it need not be fetched again.
async fn in_bundle(shared: &Shared, request: &Request, context: &Context) -> Result<Pin> {
    if request.reference.is_empty() {
        return Ok(Pin::commit(&request.checksum));
    }
    let access = Access::open(&shared.git, request, context).await?;
    let staged = Staged::fetch(shared, request, &access.git, context).await?;
    let pin = ask(&access.git, request, &staged.url()).await?.pin(request);
    drop(access);
    Repository::fetch_from(shared, request, &pin, context, Some(staged)).await?;
    Ok(pin)
}

/// What a remote says of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    reference: String,
    checksum: String,
    /// Of the commit that a tag object leads to; else empty.
    peeled: String,
}

impl Found {
    fn pin(&self, request: &Request) -> Pin {
        let commit_checksum = if request.keep_git_dir { String::new() } else { self.peeled.clone() };
        Pin { reference: self.reference.clone(), checksum: self.checksum.clone(), commit_checksum }
    }
}

impl Request {
    fn accepts(&self, found: &Found) -> bool {
        found.checksum.starts_with(&self.checksum) || found.peeled.starts_with(&self.checksum)
    }
}

/// Nothing is asked of the remote: the reference is what the client calls it.
fn by_commit(request: &Request) -> Result<Pin, GitError> {
    if request.checksum.is_empty() {
        return Err(GitError::Options("fetch-by-commit requires a checksum or a commit SHA ref"));
    }
    if !is_commit(&request.checksum) {
        return Err(GitError::ShortChecksum { checksum: request.checksum.clone() });
    }
    Ok(Pin { reference: by_commit_reference(request), checksum: request.checksum.clone(), commit_checksum: String::new() })
}

/// As the remote would have told it: a short name is a branch.
pub(super) fn by_commit_reference(request: &Request) -> String {
    match request.reference.as_str() {
        "" => request.checksum.clone(),
        full if full.starts_with("refs/") => full.to_owned(),
        short => format!("refs/heads/{short}"),
    }
}

/// Asks `remote`, which may stand in for the request's own.
async fn ask(git: &Git<'_>, request: &Request, remote: &str) -> Result<Found> {
    let reference = match request.reference.as_str() {
        "" => default_branch(git, remote).await?,
        given => given.to_owned(),
    };
    let peeled = format!("{reference}^{{}}");
    let output = git.run(&["ls-remote", "--", remote, &reference, &peeled]).await;
    let output = output.with_context(|| format!("failed to fetch remote {}", url::redacted(remote)))?;
    Ok(pick(&String::from_utf8_lossy(&output), &reference, request)?)
}

pub(super) async fn default_branch(git: &Git<'_>, remote: &str) -> Result<String> {
    let shown = url::redacted(remote);
    let output = git.text(&["ls-remote", "--symref", "--", remote, "HEAD"]).await;
    let output = output.with_context(|| format!("error fetching default branch for repository {shown}"))?;
    let branch = output.split_once("refs/heads/").and_then(|(_, rest)| rest.split_whitespace().next());
    let branch = branch.ok_or(GitError::NoDefaultBranch { remote: shown })?;
    check_reference(branch)?;
    Ok(branch.to_owned())
}

/// Out of what `ls-remote` printed: branches go before tags, as in a checkout.
fn pick(output: &str, reference: &str, request: &Request) -> Result<Found, GitError> {
    let within = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
    let (full, head, tag) = (within("refs/"), within("refs/heads/"), within("refs/tags/"));
    let peeled = format!("{tag}^{{}}");
    let lines: Vec<(&str, &str)> = output.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |name: &str| lines.iter().rev().find(|(_, known)| *known == name).map(|(hash, _)| *hash);
    let is_tag = |name: &str| name == tag;
    // Where the reference is written in full, it is one of the others.
    let (hash, used) = match (find(&head), find(&tag)) {
        _ if full != head && full != tag && find(&full).is_some() => (find(&full), full),
        (Some(hash), _) => (Some(hash), head),
        (None, found) => (found, tag.clone()),
    };
    let Some(hash) = hash else {
        return Err(GitError::NoReference { reference: reference.to_owned(), output: output.to_owned() });
    };
    if !is_commit(hash) {
        return Err(GitError::Commit { commit: hash.to_owned() });
    }
    let peeled = find(&peeled).filter(|_| is_tag(&used)).unwrap_or_default().to_owned();
    let found = Found { reference: used, checksum: hash.to_owned(), peeled };
    if !request.accepts(&found) {
        let actual = if found.peeled.is_empty() { found.checksum } else { format!(" or {}", found.peeled) };
        return Err(GitError::Mismatch { expected: request.checksum.clone(), actual });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    fn found(output: &str, reference: &str, request: &Request) -> (String, String, String) {
        let pin = pick(output, reference, request).unwrap().pin(request);
        (pin.reference, pin.checksum, pin.commit_checksum)
    }

    #[test]
    fn branches_go_before_tags() {
        let output = format!("{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        let request = Request::default();
        assert_eq!(found(&output, "v1", &request), ("refs/heads/v1".into(), A.into(), String::new()));
        assert_eq!(found(&output, "refs/tags/v1", &request), ("refs/tags/v1".into(), B.into(), C.into()));
        assert_eq!(found(&output, "heads/v1", &request), ("refs/heads/v1".into(), A.into(), String::new()));
        let kept = Request { keep_git_dir: true, ..Request::default() };
        assert_eq!(found(&output, "refs/tags/v1", &kept), ("refs/tags/v1".into(), B.into(), String::new()));
    }

    #[test]
    fn other_references_are_found_by_their_full_name() {
        let output = format!("{A}\trefs/pull/1/head\n");
        assert_eq!(found(&output, "refs/pull/1/head", &Request::default()), ("refs/pull/1/head".into(), A.into(), String::new()));
        assert_eq!(found(&output, "pull/1/head", &Request::default()), ("refs/pull/1/head".into(), A.into(), String::new()));
        let error = pick(&output, "nope", &Request::default()).unwrap_err().to_string();
        assert!(error.starts_with("repository does not contain ref nope, output: "), "{error}");
    }

    #[test]
    fn checksums_may_be_of_the_tag_or_its_commit() {
        let output = format!("{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n");
        for (checksum, error) in [("bbb", None), ("cccc", None), ("dd", Some(format!("expected checksum to match dd, got  or {C}")))] {
            let request = Request { checksum: checksum.into(), ..Request::default() };
            assert_eq!(pick(&output, "v1", &request).err().map(|e| e.to_string()), error);
        }
    }
}
