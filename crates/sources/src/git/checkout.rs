//! A commit's files as a layer.
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fault::{Context as _, Fault, Result};
use layers::{Layer, Properties};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::cli::Git;
use super::error::GitError;
use super::repository::Repository;
use super::request::{Request, is_commit};
use crate::store::Shared;

pub(super) async fn checkout(shared: &Shared, request: &Request, repository: &Repository<'_>) -> Result<Layer> {
    let description = format!("git snapshot for {}#{}", request.shown(), repository.reference);
    let draft = shared.layers.draft(None, Properties::new(description).of_type("source.git.checkout"))?;
    let root = draft.own_files();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))?;
    let whole = request.subdir.is_empty();
    let tree = if whole { root.clone() } else { temporary(&root)? };
    let git = match request.keep_git_dir && whole {
        true => clone(request, repository, &root).await?,
        false => export(request, repository, &tree).await?,
    };
    if !request.skip_submodules {
        let submodules = git.run(&["submodule", "update", "--init", "--recursive", "--depth=1"]).await;
        submodules.with_context(|| format!("failed to update submodules for {}", request.shown()))?;
    }
    let time = match request.mtime.as_str() {
        "commit" => Some(commit_time(&git, &repository.wanted).await.with_context(|| failed_time(request))?),
        _ => None,
    };
    let subdir = request.subdir.clone();
    task::blocking(move || {
        if !subdir.is_empty() {
            raise(&root, &tree, &subdir)?;
        }
        if let Some(time) = time {
            set_times(&root, time)?;
        }
        Ok(draft.commit()?)
    })
    .await
}

/// The files alone.
async fn export<'a>(request: &Request, repository: &Repository<'a>, tree: &Path) -> Result<Git<'a>> {
    let git = repository.git().with_work_tree(tree);
    let checked_out = git.run(&["checkout", "--no-overlay", &repository.wanted, "--", "."]).await;
    checked_out.with_context(|| format!("failed to checkout remote {}", request.shown()))?;
    Ok(git)
}

/// The files in a repository of their own, which knows the remote by its public name.
async fn clone<'a>(request: &Request, repository: &Repository<'a>, root: &Path) -> Result<Git<'a>> {
    let (shared, reference) = (repository.git(), &repository.reference);
    let git_dir = root.join(".git");
    let git = shared.with_work_tree(root).in_repository(&git_dir);
    let mut args = vec!["-c", "init.defaultBranch=master", "init"];
    args.extend(repository.sha256.then_some("--object-format=sha256"));
    git.run(&args).await?;
    // As a URL, so that git does not take its shortcuts for local clones.
    git.run(&["remote", "add", "origin", &format!("file://{}", repository.dir.display())]).await?;
    let refspec = match shared.text(&["cat-file", "-t", &repository.wanted]).await?.as_str() {
        "tag" if reference.starts_with("refs/tags/") => format!("{reference}:{reference}"),
        "tag" => format!("{reference}:refs/tags/{reference}"),
        _ if repository.wanted != *reference => format!("{}:{reference}", repository.wanted),
        _ if is_commit(reference) => {
            let name = format!("refs/buildkit/{reference}");
            shared.run(&["update-ref", &name, reference]).await?;
            name
        }
        _ => format!("{reference}:{reference}"),
    };
    git.run(&["fetch", "-u", "--depth=1", "--", "origin", &refspec]).await?;
    let shown = request.shown();
    git.run(&["checkout", "FETCH_HEAD"]).await.with_context(|| format!("failed to checkout remote {shown}"))?;
    let renamed = git.run(&["remote", "set-url", "origin", &shown]).await;
    renamed.with_context(|| format!("failed to set remote origin to {shown}"))?;
    let expired = git.run(&["reflog", "expire", "--all", "--expire=now"]).await;
    expired.with_context(|| format!("failed to expire reflog for remote {shown}"))?;
    let _ = std::fs::remove_file(git_dir.join("FETCH_HEAD"));
    Ok(git)
}

/// A directory of a name that no repository has by chance.
fn temporary(root: &Path) -> Result<PathBuf> {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("failed to read random bytes")?;
    let path = root.join(format!("checkout{}", random.trim()));
    std::fs::create_dir(&path).context("failed to create temporary checkout dir")?;
    Ok(path)
}

/// Makes the contents of `subdir` those of the root, and removes the rest of the checkout.
fn raise(root: &Path, tree: &Path, subdir: &str) -> Result<()> {
    only_directories(tree, subdir).with_context(|| format!("invalid subdir {subdir}"))?;
    for entry in std::fs::read_dir(tree.join(subdir)).with_context(|| format!("failed to open subdir {subdir}"))? {
        let entry = entry?;
        std::fs::rename(entry.path(), root.join(entry.file_name()))?;
    }
    Ok(std::fs::remove_dir_all(tree)?)
}

/// A link in the repository must not lead out of it.
fn only_directories(tree: &Path, subdir: &str) -> Result<()> {
    let mut path = PathBuf::new();
    for part in subdir.split('/') {
        path.push(part);
        let found = std::fs::symlink_metadata(tree.join(&path)).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let text = format!("failed to lstat {:?}", path.display().to_string());
            let inner = if missing { Fault::new(fault::Kind::NotFound, "no such file or directory") } else { error.into() };
            inner.context(text)
        })?;
        if !found.is_dir() {
            return Err(GitError::NotADirectory { subdir: subdir.to_owned(), path: path.display().to_string() }.into());
        }
    }
    Ok(())
}

async fn commit_time(git: &Git<'_>, wanted: &str) -> Result<SystemTime> {
    let text = git.text(&["log", "-1", "--format=%ct", &format!("{wanted}^{{commit}}")]).await?;
    let seconds: i64 = text.parse().map_err(|_| GitError::Time { text: text.clone() })?;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    Ok(if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance })
}

fn failed_time(request: &Request) -> String {
    format!("failed to get commit time for {}", request.shown())
}

/// Everything below and including `path`, links themselves and not what they point to. Directories last, as their entries' times do not change them.
fn set_times(path: &Path, time: SystemTime) -> Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            set_times(&entry?.path(), time)?;
        }
    }
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| std::io::Error::from(e).into())
}
