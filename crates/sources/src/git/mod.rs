//! `git://`: a commit of a repository, as files.
//!
//! The work is done by the git program, with no configuration but ours. A bare repository is kept for each remote, so that only what is new is
//! fetched; what was checked out is kept too, under the cache key's text.
mod auth;
mod bundle;
mod checkout;
mod cli;
mod error;
mod repository;
mod request;
mod resolve;
mod url;

use std::sync::Arc;

use bytes::Bytes;
use fault::Result;
use kv::{Batch, Json, Table};
use layers::{Layer, LayerId};
use llb::Vertex;

pub use cli::GitSettings;
pub use error::GitError;
pub(crate) use request::Request;
pub(crate) use resolve::{Found, Pin};

use crate::key::Key;
use crate::signature::{SignatureError, verify_git_object};
use crate::store::{Context, Shared};
use repository::Repository;
use request::Verify;

/// Key text and subdirectory to the layer with the checkout.
const CHECKOUTS: Table<str, Json<LayerId>> = Table::new("sources.git");

/// What a repository holds under a reference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitMeta {
    pub reference: String,
    /// Of the commit, or of the tag object that leads to it.
    pub checksum: String,
    /// Of the commit, where `checksum` is of a tag object.
    pub commit_checksum: String,
    /// Raw; empty if they were not asked for.
    pub commit_object: Bytes,
    pub tag_object: Bytes,
}

pub(crate) async fn key(shared: &Shared, vertex: &Vertex, request: &Request, context: &Context) -> Result<Key> {
    let pin = resolve::resolve(shared, request, context).await?;
    if request.verify.is_some() {
        verified(shared, request, &pin, context).await?;
    }
    let key = request.key_text(pin.keyed_by(request), &pin.reference);
    let key = Key::new(&key, &pin.checksum, false);
    shared.commits.put(vertex.digest.clone(), Arc::new(pin));
    Ok(key)
}

pub(crate) async fn fetch(shared: &Shared, vertex: &Vertex, request: &Request, context: &Context) -> Result<Layer> {
    let pin = match shared.commits.get(&vertex.digest) {
        Some(pin) => pin,
        None => {
            let pin = resolve::resolve(shared, request, context).await?;
            if request.verify.is_some() {
                verified(shared, request, &pin, context).await?;
            }
            Arc::new(pin)
        }
    };
    let name = format!("{}:{}", request.key_text(pin.keyed_by(request), &pin.reference), request.subdir);
    if let Some(layer) = known(shared, &name)? {
        return Ok(layer);
    }
    let repository = Repository::fetch(shared, request, &pin, context).await?;
    // Somebody may have checked it out while we waited for the repository.
    if let Some(layer) = known(shared, &name)? {
        return Ok(layer);
    }
    let layer = match request.checkout_bundle {
        true => bundle::create(shared, request, &repository).await?,
        false => checkout::checkout(shared, request, &repository).await?,
    };
    let mut batch = Batch::new();
    batch.put(&CHECKOUTS, name.as_str(), &Json(layer.id()));
    shared.db.submit(batch);
    Ok(layer)
}

fn known(shared: &Shared, name: &str) -> Result<Option<Layer>> {
    let Some(Json(id)) = shared.db.get(&CHECKOUTS, name)? else { return Ok(None) };
    Ok(shared.layers.get(&id)?)
}

/// `objects` asks for the commit and the tag themselves, for which the remote is fetched.
pub(crate) async fn meta(shared: &Shared, request: &Request, objects: bool, context: &Context) -> Result<GitMeta> {
    let pin = resolve::resolve(shared, request, context).await?;
    match objects || request.verify.is_some() {
        true => verified(shared, request, &pin, context).await,
        false => Ok(GitMeta::from(pin)),
    }
}

impl From<Pin> for GitMeta {
    fn from(pin: Pin) -> Self {
        let Pin { reference, checksum, commit_checksum } = pin;
        Self { reference, checksum, commit_checksum, ..Self::default() }
    }
}

/// Reads the objects, and checks their signature if the op wants one.
async fn verified(shared: &Shared, request: &Request, pin: &Pin, context: &Context) -> Result<GitMeta> {
    let repository = Repository::fetch(shared, request, pin, context).await?;
    let git = repository.git();
    let mut meta = GitMeta::from(pin.clone());
    match git.text(&["cat-file", "-t", &meta.checksum]).await?.as_str() {
        "commit" => meta.commit_checksum.clear(),
        "tag" if meta.commit_checksum.is_empty() => {
            meta.commit_checksum = git.text(&["rev-parse", &format!("{}^{{commit}}", meta.checksum)]).await?;
        }
        "tag" => {}
        other => return Err(GitError::Object { kind: other.to_owned() }.into()),
    }
    let mut commit = meta.checksum.clone();
    if !meta.commit_checksum.is_empty() {
        meta.tag_object = git.run(&["cat-file", "tag", &meta.checksum]).await?.into();
        commit = meta.commit_checksum.clone();
    }
    meta.commit_object = git.run(&["cat-file", "commit", &commit]).await?.into();
    if let Some(verify) = &request.verify {
        check_signature(&meta, verify)?;
    }
    Ok(meta)
}

/// A signed tag vouches for its commit. One that is not signed well leaves it to the commit, unless the op insists.
fn check_signature(meta: &GitMeta, verify: &Verify) -> Result<()> {
    let signed = |object: &[u8], name: &str| verify_git_object(object, name, &verify.public_key, verify.reject_expired);
    let tag = match verify.ignore_signed_tag || meta.tag_object.is_empty() {
        true => Err(SignatureError::NoSignedTag),
        false => signed(&meta.tag_object, &meta.checksum),
    };
    match tag {
        Ok(()) => Ok(()),
        Err(error) if verify.require_signed_tag => Err(error.into()),
        Err(_) => {
            let name = if meta.commit_checksum.is_empty() { &meta.checksum } else { &meta.commit_checksum };
            Ok(signed(&meta.commit_object, name)?)
        }
    }
}
