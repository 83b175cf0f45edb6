//! Answers frontends that ask what a source stands for.
use fault::{Fault, Kind, Result};
use frontend::bridge::{AttestationChain, GitMeta, HttpMeta, ImageMeta, ResolveRequest, SourceMeta};
use layers::{PinGroup, Pins};
use oci::{Digest, Reference, gojson};
use progress::Reporter;
use session::Group;
use sources::{Chain, Context};
use task::Cancel;

use crate::open::Worker;

impl Worker {
    /// Pins a source without fetching it.
    pub async fn resolve(
        &self,
        request: ResolveRequest,
        sessions: &Group,
        pins: &Pins,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<SourceMeta> {
        let pins = PinGroup::new([pins.clone()]);
        let context = Context { cancel: cancel.clone(), reporter: reporter.clone(), sessions: sessions.clone(), pins };
        let mut op = request.op.clone();
        let scheme = op.identifier.split_once("://").map(|(scheme, _)| scheme.to_owned()).unwrap_or_default();
        match scheme.as_str() {
            "docker-image" | "oci-layout" => {
                if !request.resolve_mode.is_empty() {
                    op.attrs.insert("image.resolvemode".into(), request.resolve_mode.clone());
                }
                let platform = request.platform.as_ref();
                let found = self.sources.image_config(&op, platform, !request.no_config, &context).await?;
                let wanted = &request.resolve_attestations;
                let mut attestations = None;
                if request.attestation_chain || !wanted.is_empty() {
                    // The name may come to stand for something else meanwhile.
                    op.identifier = pinned(&op.identifier, &found.digest)?;
                    attestations = self.sources.attestation_chain(&op, platform, wanted, &context).await?.map(chain);
                }
                let image = ImageMeta { digest: found.digest, config: found.config, attestations };
                Ok(SourceMeta { op: request.op, image: Some(image), ..SourceMeta::default() })
            }
            "http" | "https" => {
                let asked = request.http_checksum.as_ref().map(|c| (c.algorithm.as_str(), c.suffix.as_ref()));
                let found = self.sources.http_meta(&op, asked, &context).await?;
                let checksum = found.checksum.zip(request.http_checksum.map(|c| c.suffix));
                let http = HttpMeta { digest: found.digest, filename: found.filename, last_modified: found.last_modified, checksum };
                Ok(SourceMeta { op: request.op, http: Some(http), ..SourceMeta::default() })
            }
            "git" => {
                let found = self.sources.git_meta(&op, request.git_objects, &context).await?;
                let git = GitMeta {
                    checksum: found.checksum,
                    reference: found.reference,
                    commit_checksum: found.commit_checksum,
                    commit_object: found.commit_object,
                    tag_object: found.tag_object,
                };
                Ok(SourceMeta { op: request.op, git: Some(git), ..SourceMeta::default() })
            }
            // Nothing is to be found out about the others before they are fetched.
            _ => Ok(SourceMeta { op: request.op, ..SourceMeta::default() }),
        }
    }
}

/// The identifier with the digest that its name stands for.
fn pinned(identifier: &str, digest: &Digest) -> Result<String> {
    let (scheme, name) = identifier.split_once("://").unwrap_or(("docker-image", identifier));
    let reference: Reference = name.parse().map_err(|e| Fault::of(Kind::Invalid, e))?;
    Ok(format!("{scheme}://{}", reference.with_digest(digest.clone())))
}

fn chain(found: Chain) -> AttestationChain {
    AttestationChain {
        root: found.root,
        image_manifest: Some(found.image),
        attestation_manifest: found.attestations,
        signature_manifests: found.signature.into_iter().collect(),
        blobs: found.blobs.into_iter().map(|(d, data)| (d.digest.clone(), (gojson::to_vec(&d).into(), data))).collect(),
    }
}
