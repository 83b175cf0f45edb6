//! What is stated about an image in its registry, and who signed that: an index names attestation manifests, these have signatures among their
//! referrers. Nothing is judged here; policies at the client do that.
use bytes::Bytes;
use fault::{Fault, Result};
use oci::{Descriptor, Digest, Document, Index, Platform, media};

use super::origin::{Kind, Origin};
use super::pin::Reader;
use super::request::Request;
use super::{pin, platform_of};
use crate::error::SourceError;
use crate::store::{Context, Shared};

const SIGSTORE_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const COSIGN_SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
const PROVENANCE: [&str; 2] = ["https://slsa.dev/provenance/v0.2", "https://slsa.dev/provenance/v1"];

/// From an index down to the signature of what is stated about one of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub root: Digest,
    /// Named only: its content proves nothing that its digest does not.
    pub image: Digest,
    pub attestations: Option<Digest>,
    /// At most one: a bundle rather than a plain signature.
    pub signature: Option<Digest>,
    /// The documents that prove it, and the statements that were asked for.
    pub blobs: Vec<(Descriptor, Bytes)>,
}

/// `None` where the name stands for no OCI index: statements are nowhere else. With the statements of the `wanted` predicate types.
pub(crate) async fn chain(
    shared: &Shared,
    request: &Request,
    platform: Option<&Platform>,
    wanted: &[String],
    context: &Context,
) -> Result<Option<Chain>> {
    let origin = Origin::new(shared, request, context);
    context.cancel.run(follow(shared, &origin, request, &platform_of(platform), wanted)).await
}

async fn follow(shared: &Shared, origin: &Origin, request: &Request, platform: &Platform, wanted: &[String]) -> Result<Option<Chain>> {
    let root = pin::root(shared, origin, request).await?;
    if root.media_type != media::OCI_INDEX {
        return Ok(None);
    }
    let mut reader = Reader::new(shared, origin);
    let bytes = reader.read(&root, Kind::Manifest).await?;
    let Document::Index(index) = parse(&root, &bytes)? else { return Ok(None) };
    let image = index.matching(platform).into_iter().find(|found| media::is_manifest(&found.media_type));
    let image = image.ok_or_else(|| SourceError::Platform { digest: root.digest.clone() })?;
    let mut chain =
        Chain { root: root.digest.clone(), image: image.digest.clone(), attestations: None, signature: None, blobs: vec![(root, bytes)] };
    let Some(attestations) = attestations(origin, &index, image).await? else { return Ok(Some(chain)) };
    let bytes = reader.read(&attestations, Kind::Manifest).await?;
    let stated = layers(&attestations, &bytes)?;
    chain.attestations = Some(attestations.digest.clone());
    let signature = signature(origin.referrers(&attestations.digest, None).await?);
    chain.blobs.push((attestations, bytes));
    let mut proofs = Vec::new();
    if let Some(signature) = signature {
        let bytes = reader.read(&signature, Kind::Manifest).await?;
        proofs = layers(&signature, &bytes)?;
        chain.signature = Some(signature.digest.clone());
        chain.blobs.push((signature, bytes));
    }
    let is_wanted = |layer: &Descriptor| layer.annotations.get(PREDICATE_TYPE).is_some_and(|kind| wanted.contains(kind));
    proofs.extend(stated.into_iter().filter(is_wanted));
    for proof in proofs {
        let bytes = reader.read(&proof, Kind::Config).await?;
        chain.blobs.push((proof, bytes));
    }
    Ok(Some(chain))
}

/// The manifest with the statements about `image`: a neighbour in the index or, with Docker's hardened images, a referrer.
async fn attestations(origin: &Origin, index: &Index, image: &Descriptor) -> Result<Option<Descriptor>> {
    if !is_hardened(index) {
        let about =
            |d: &&Descriptor| d.is_attestation() && d.annotations.get(oci::REFERENCE_DIGEST).is_some_and(|r| *r == image.digest.as_str());
        return Ok(index.manifests.iter().find(about).cloned());
    }
    let is_provenance = |d: &Descriptor| d.annotations.get(PREDICATE_TYPE).is_some_and(|kind| PROVENANCE.contains(&kind.as_str()));
    let found = origin.referrers(&image.digest, Some(IN_TOTO)).await?.into_iter().find(is_provenance);
    let none = || Fault::new(fault::Kind::NotFound, format!("no attestation referrers found for DHI manifest {}", image.digest));
    Ok(Some(found.ok_or_else(none)?))
}

fn is_hardened(index: &Index) -> bool {
    let built = |d: &Descriptor| d.annotations.get("com.docker.dhi.build.id").is_some_and(|id| !id.is_empty());
    let titled = index.annotations.get("org.opencontainers.image.title").is_some_and(|title| title.starts_with("dhi/"));
    titled && index.manifests.iter().all(built)
}

fn signature(referrers: Vec<Descriptor>) -> Option<Descriptor> {
    let mut signatures = referrers.into_iter().filter(|d| [SIGSTORE_BUNDLE, COSIGN_SIGNATURE].contains(&d.artifact_type.as_str()));
    let first = signatures.next()?;
    if first.artifact_type == SIGSTORE_BUNDLE {
        return Some(first);
    }
    Some(signatures.find(|d| d.artifact_type == SIGSTORE_BUNDLE).unwrap_or(first))
}

fn layers(of: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>> {
    match parse(of, bytes)? {
        Document::Manifest(manifest) => Ok(manifest.layers),
        Document::Index(_) => Err(Fault::invalid(format!("{} is an index where an attestation manifest was expected", of.digest))),
    }
}

fn parse(of: &Descriptor, bytes: &[u8]) -> Result<Document> {
    let wrong = |source| SourceError::Manifest { digest: of.digest.clone(), source };
    Ok(Document::parse(&of.media_type, bytes).map_err(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(name: &str, artifact_type: &str) -> Descriptor {
        Descriptor { artifact_type: artifact_type.into(), ..Descriptor::of(media::OCI_MANIFEST, name.as_bytes()) }
    }

    #[test]
    fn a_bundle_is_taken_before_a_plain_signature() {
        let (sbom, plain) = (descriptor("sbom", "application/spdx+json"), descriptor("plain", COSIGN_SIGNATURE));
        let (one, two) = (descriptor("one", SIGSTORE_BUNDLE), descriptor("two", SIGSTORE_BUNDLE));
        assert_eq!(signature(vec![sbom.clone()]), None);
        assert_eq!(signature(vec![sbom.clone(), plain.clone()]), Some(plain.clone()));
        assert_eq!(signature(vec![sbom, plain, one.clone(), two]), Some(one));
    }

    #[test]
    fn an_index_is_hardened_if_all_of_it_says_so() {
        let mut manifest = descriptor("m", "");
        manifest.annotations.insert("com.docker.dhi.build.id".into(), "1".into());
        let mut index: Index = serde_json::from_str(r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        index.annotations.insert("org.opencontainers.image.title".into(), "dhi/x".into());
        index.manifests = vec![manifest];
        assert!(is_hardened(&index));
        index.manifests.push(descriptor("n", ""));
        assert!(!is_hardened(&index));
    }
}
