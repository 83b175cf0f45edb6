//! The bare repository that the daemon keeps for a remote, and how commits get into it.
use std::path::{Path, PathBuf};

use fault::{Context as _, Fault, Result};
use layers::{Cell, Properties, Sharing};

use super::auth::Access;
use super::bundle::Staged;
use super::cli::Git;
use super::error::GitError;
use super::request::{Request, is_commit};
use super::resolve::{self, Pin};
use crate::store::{Context, Shared};

/// Says that a cell was set up to its end.
const READY: &str = "sources.git.ready";

/// A remote's repository, used by nobody else meanwhile, with the wanted commit in it.
pub(super) struct Repository<'a> {
    pub access: Access<'a>,
    pub dir: PathBuf,
    /// The request's, or the default branch.
    pub reference: String,
    /// What of the repository is wanted; differs where the remote was asked for a commit by its hash.
    pub wanted: String,
    pub sha256: bool,
    _cell: Cell,
}

impl<'a> Repository<'a> {
    /// Fetches what `pin` says from the remote, if it is not there yet.
    pub async fn fetch(shared: &'a Shared, request: &Request, pin: &Pin, context: &'a Context) -> Result<Self> {
        Self::fetch_from(shared, request, pin, context, None).await
    }

    /// As [`Self::fetch`], with the request's bundle if that is here already.
    pub async fn fetch_from(
        shared: &'a Shared,
        request: &Request,
        pin: &Pin,
        context: &'a Context,
        mut staged: Option<Staged>,
    ) -> Result<Self> {
        let repository = match Self::try_fetch(shared, request, pin, context, &mut staged).await {
            Err(fault) if fault.find::<GitError>().is_some_and(GitError::needs_fresh_repository) => {
                shared.layers.clear_cells(&cell_key(request), None)?;
                Self::try_fetch(shared, request, pin, context, &mut staged).await?
            }
            fetched => fetched?,
        };
        repository.check(request).await?;
        Ok(repository)
    }

    pub fn git(&self) -> Git<'a> {
        self.access.git.in_repository(&self.dir)
    }

    async fn try_fetch(
        shared: &'a Shared,
        request: &Request,
        pin: &Pin,
        context: &'a Context,
        staged: &mut Option<Staged>,
    ) -> Result<Self> {
        let access = Access::open(&shared.git, request, context).await?;
        let shown = request.shown();
        let properties = Properties::new(format!("shared git repo for {shown}"));
        let cell = shared.layers.cell(&cell_key(request), None, Sharing::Locked, properties, &context.cancel).await?;
        let dir = cell.path();
        let sha256 = pin.checksum.len() == 64;
        let git = access.git.in_repository(&dir);
        if cell.meta_get(READY)?.is_none() {
            init(&git, &dir, &request.remote, sha256).await?;
            cell.meta_put(READY, b"1");
        }
        let reference = match request.reference.as_str() {
            // A bundle is always about a commit.
            given if !request.bundle.is_empty() && (given.is_empty() || is_commit(given)) => request.checksum.clone(),
            "" => resolve::default_branch(&git, &request.remote).await?,
            given => given.to_owned(),
        };
        let by_commit = request.fetch_by_commit && !request.checksum.is_empty();
        let wanted = if by_commit { request.checksum.clone() } else { reference.clone() };
        let repository = Self { access, dir, reference, wanted, sha256, _cell: cell };
        match request.bundle.is_empty() {
            true => repository.bring(request, pin, "origin").await?,
            false => repository.bring_bundle(shared, request, pin, context, staged).await?,
        }
        Ok(repository)
    }

    /// Gets the commit from the bundle, unless it came earlier.
    async fn bring_bundle(
        &self,
        shared: &Shared,
        request: &Request,
        pin: &Pin,
        context: &Context,
        staged: &mut Option<Staged>,
    ) -> Result<()> {
        let git = self.git();
        if git.succeeds(&["cat-file", "-e", &format!("{}^{{commit}}", pin.checksum)]).await? {
            if !is_commit(&self.reference) {
                git.run(&["update-ref", &full(&self.target()), &pin.checksum, "--no-deref"]).await?;
            }
            return Ok(());
        }
        if staged.is_none() {
            *staged = Some(Staged::fetch(shared, request, &self.access.git, context).await?);
        }
        let url = staged.as_ref().map(Staged::url).expect("just fetched");
        self.bring(request, pin, &url).await
    }

    /// A name of its own keeps the commit, and tells the remote later what is here already.
    fn target(&self) -> String {
        if self.reference.starts_with("refs/tags/") { self.reference.clone() } else { format!("tags/{}", self.reference) }
    }

    /// Gets the wanted commit from `origin`, a remote's name or a URL.
    async fn bring(&self, request: &Request, pin: &Pin, origin: &str) -> Result<()> {
        let git = self.git();
        let (reference, wanted) = (&self.reference, &self.wanted);
        if is_commit(wanted) && git.succeeds(&["cat-file", "-e", "--", &format!("{wanted}^{{commit}}")]).await? {
            return Ok(());
        }
        // A leftover of a git that was killed; nobody else is here now.
        let _ = std::fs::remove_file(self.dir.join("shallow.lock"));
        let target = self.target();
        let refspec = format!("{wanted}:{target}");
        let mut args = vec!["fetch"];
        // A bundle has all of the history.
        match !request.checkout_bundle && (request.fetch_by_commit || !is_commit(wanted)) {
            true => args.extend(["--depth=1", "--no-tags"]),
            false => args.extend(self.everything()),
        }
        args.push(origin);
        match is_commit(reference) {
            true => args.push(reference),
            false => args.extend(["--force", "--", &refspec]),
        }
        let failed = || format!("failed to fetch remote {}", request.shown());
        git.run(&args).await.with_context(failed)?;
        if git.text(&["rev-parse", wanted]).await? == pin.checksum {
            return Ok(());
        }
        // The remote has moved on meanwhile: go back to what the cache is keyed by, if it can still be had.
        if !git.succeeds(&["cat-file", "-e", &pin.checksum]).await? {
            let mut args = vec!["fetch"];
            args.extend(self.everything());
            args.extend([origin, &pin.checksum]);
            git.run(&args).await.with_context(failed)?;
            git.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
            if !git.succeeds(&["cat-file", "-e", &pin.checksum]).await? {
                return Err(GitError::Moved { reference: reference.clone(), commit: pin.checksum.clone() }.into());
            }
        }
        git.run(&["update-ref", &full(&target), &pin.checksum, "--no-deref"]).await?;
        Ok(())
    }

    /// All of the remote's history, as nobody knows where a commit is.
    fn everything(&self) -> Vec<&'static str> {
        if self.dir.join("shallow").exists() { vec!["--tags", "--unshallow"] } else { vec!["--tags"] }
    }

    /// Once more what the client insists on, now that the objects are here.
    async fn check(&self, request: &Request) -> Result<()> {
        if request.checksum.is_empty() {
            return Ok(());
        }
        let git = self.git();
        let shown = || format!("failed to rev-parse {} for {}", self.wanted, request.shown());
        let actual = git.text(&["rev-parse", &self.wanted]).await.with_context(shown)?;
        let Err(mismatch) = request.expect_checksum(&actual) else { return Ok(()) };
        let peeled = git.text(&["rev-parse", &format!("{}^{{}}", self.wanted)]).await.unwrap_or_else(|_: Fault| actual.clone());
        if peeled == actual {
            return Err(mismatch.into());
        }
        let both = format!("{actual} or {peeled}");
        request.expect_checksum(&peeled).map_err(|_| GitError::Mismatch { expected: request.checksum.clone(), actual: both }.into())
    }
}

fn full(target: &str) -> String {
    if target.starts_with("refs/") { target.to_owned() } else { format!("refs/{target}") }
}

fn cell_key(request: &Request) -> String {
    format!("git:{}", request.remote)
}

async fn init(git: &Git<'_>, dir: &Path, remote: &str, sha256: bool) -> Result<()> {
    // What an earlier attempt left.
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    init_bare(git, sha256).await.with_context(|| format!("failed to init repo at {}", dir.display()))?;
    git.run(&["remote", "add", "origin", remote]).await.with_context(|| format!("failed add origin repo at {}", dir.display()))?;
    Ok(())
}

/// Says which branch would be the first one, lest git gives advice about it.
pub(super) async fn init_bare(git: &Git<'_>, sha256: bool) -> Result<()> {
    let mut args = vec!["-c", "init.defaultBranch=master", "init", "--bare"];
    args.extend(sha256.then_some("--object-format=sha256"));
    git.run(&args).await.map(|_| ())
}
