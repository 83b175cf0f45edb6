//! Messages of the gateway and their typed forms.
use std::collections::BTreeMap;
use std::sync::Arc;

use fault::{Fault, Kind, Result};
use frontend::bridge::{
    Attestation, AttestationChain, AttestationKind, HttpChecksumRequest, ImageMeta, ResolveRequest, SourceMeta, Subject, SubjectKind,
};
use frontend::{Outcome, Ref, Refs};
use llb::SourceOp;
use prost_types::Timestamp;
use proto::moby::buildkit::v1::frontend as pb;
use tonic::Status;

use super::Drive;
use crate::convert;

/// How a caller wants refs written, by its age.
#[derive(Clone, Copy, PartialEq)]
pub enum RefForm {
    Id,
    IdAndGraph,
}

impl Drive {
    /// Writes an outcome and holds its refs, so that the driver can name them.
    pub(super) fn outcome_message(&self, outcome: &Outcome, form: RefForm) -> pb::Result {
        let id = |reference: &Option<Arc<dyn Ref>>| reference.as_ref().map(|r| self.hold(r)).unwrap_or_default();
        // Never the empty message: as a value in a map it would be left out, and clients in Go take that for a null.
        let full = |reference: &Option<Arc<dyn Ref>>| {
            let graph = reference.as_ref().map(|r| r.graph().encode());
            pb::Ref { id: id(reference), def: Some(graph.unwrap_or_default()) }
        };
        let result = match (&outcome.refs, form) {
            (Refs::Single(one), RefForm::Id) => pb::result::Result::RefDeprecated(id(one)),
            (Refs::Single(one), RefForm::IdAndGraph) => pb::result::Result::Ref(full(one)),
            (Refs::Map(map), RefForm::Id) => {
                pb::result::Result::RefsDeprecated(pb::RefMapDeprecated { refs: map.iter().map(|(key, r)| (key.clone(), id(r))).collect() })
            }
            (Refs::Map(map), RefForm::IdAndGraph) => {
                pb::result::Result::Refs(pb::RefMap { refs: map.iter().map(|(key, r)| (key.clone(), full(r))).collect() })
            }
        };
        let attestation = |a: &Attestation| pb::Attestation {
            kind: match a.kind {
                AttestationKind::InToto => pb::AttestationKind::InToto,
                AttestationKind::Bundle => pb::AttestationKind::Bundle,
            } as i32,
            metadata: a.metadata.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect(),
            r#ref: Some(full(&a.reference)),
            path: a.path.clone(),
            in_toto_predicate_type: a.predicate_type.clone(),
            in_toto_subjects: a.subjects.iter().map(subject_message).collect(),
        };
        let attestations = outcome.attestations.iter().filter(|(_, all)| !all.is_empty());
        pb::Result {
            metadata: outcome.metadata.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect(),
            attestations: attestations
                .map(|(key, all)| (key.clone(), pb::Attestations { attestation: all.iter().map(attestation).collect() }))
                .collect(),
            result: Some(result),
        }
    }

    /// Reads what a driver returns: refs are named by id.
    pub(super) fn read_outcome(&self, message: pb::Result) -> Result<Outcome> {
        let find = |id: &str| match id {
            "" => Ok(None),
            id => self.reference(id).map(Some).ok_or_else(|| Fault::new(Kind::Unknown, format!("return reference {id} not found"))),
        };
        let refs = match message.result {
            None => Refs::Single(None),
            Some(pb::result::Result::RefDeprecated(id)) => Refs::Single(find(&id)?),
            Some(pb::result::Result::Ref(one)) => Refs::Single(find(&one.id)?),
            Some(pb::result::Result::RefsDeprecated(map)) => {
                Refs::Map(map.refs.into_iter().map(|(key, id)| Ok((key, find(&id)?))).collect::<Result<_>>()?)
            }
            Some(pb::result::Result::Refs(map)) => {
                Refs::Map(map.refs.into_iter().map(|(key, one)| Ok((key, find(&one.id)?))).collect::<Result<_>>()?)
            }
        };
        let attestation = |a: pb::Attestation| -> Result<Attestation> {
            Ok(Attestation {
                kind: match pb::AttestationKind::try_from(a.kind) {
                    Ok(pb::AttestationKind::InToto) => AttestationKind::InToto,
                    Ok(pb::AttestationKind::Bundle) => AttestationKind::Bundle,
                    Err(_) => return Err(Fault::invalid(format!("unknown attestation kind {}", a.kind))),
                },
                metadata: bytes_map(a.metadata),
                reference: a.r#ref.map(|r| find(&r.id)).transpose()?.flatten(),
                path: a.path,
                predicate_type: a.in_toto_predicate_type,
                subjects: a.in_toto_subjects.into_iter().map(into_subject).collect::<Result<_>>()?,
            })
        };
        let attestations = message.attestations.into_iter();
        Ok(Outcome {
            refs,
            metadata: bytes_map(message.metadata),
            attestations: attestations
                .map(|(key, all)| Ok((key, all.attestation.into_iter().map(attestation).collect::<Result<_>>()?)))
                .collect::<Result<_>>()?,
        })
    }
}

fn bytes_map(map: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, bytes::Bytes> {
    map.into_iter().map(|(key, value)| (key, value.into())).collect()
}

fn subject_message(subject: &Subject) -> pb::InTotoSubject {
    let kind = match subject.kind {
        SubjectKind::Own => pb::InTotoSubjectKind::Self_,
        SubjectKind::Raw => pb::InTotoSubjectKind::Raw,
    };
    pb::InTotoSubject { kind: kind as i32, digest: subject.digests.iter().map(ToString::to_string).collect(), name: subject.name.clone() }
}

fn into_subject(subject: pb::InTotoSubject) -> Result<Subject> {
    let kind = match pb::InTotoSubjectKind::try_from(subject.kind) {
        Ok(pb::InTotoSubjectKind::Self_) => SubjectKind::Own,
        Ok(pb::InTotoSubjectKind::Raw) => SubjectKind::Raw,
        Err(_) => return Err(Fault::invalid(format!("unknown attestation subject kind {}", subject.kind))),
    };
    let digest = |text: &String| text.parse().map_err(|_| Fault::invalid(format!("invalid digest {text:?} of an attestation subject")));
    Ok(Subject { kind, name: subject.name, digests: subject.digest.iter().map(digest).collect::<Result<_>>()? })
}

pub fn source_question(request: pb::ResolveSourceMetaRequest) -> Result<ResolveRequest, Status> {
    let source = request.source.ok_or_else(|| Status::invalid_argument("source is required"))?;
    let image = request.image.unwrap_or_default();
    let http_checksum = match request.http.and_then(|http| http.checksum_request) {
        None => None,
        Some(asked) => {
            use pb::checksum_request::ChecksumAlgo as Algo;
            let algorithm = match Algo::try_from(asked.algo) {
                Ok(Algo::Sha256) => "sha256",
                Ok(Algo::Sha384) => "sha384",
                Ok(Algo::Sha512) => "sha512",
                Err(_) => return Err(Status::invalid_argument(format!("unsupported checksum algorithm {}", asked.algo))),
            };
            Some(HttpChecksumRequest { algorithm: algorithm.into(), suffix: asked.suffix.into() })
        }
    };
    Ok(ResolveRequest {
        op: SourceOp { identifier: source.identifier, attrs: source.attrs },
        platform: request.platform.map(llb::parts::platform),
        log_name: request.log_name,
        resolve_mode: request.resolve_mode,
        no_config: image.no_config,
        attestation_chain: image.attestation_chain,
        resolve_attestations: image.resolve_attestations,
        git_objects: request.git.is_some_and(|git| git.return_object),
        http_checksum,
        source_policies: convert::policies(request.source_policies)?,
    })
}

pub fn source_answer(meta: SourceMeta) -> pb::ResolveSourceMetaResponse {
    pb::ResolveSourceMetaResponse {
        source: Some(proto::pb::SourceOp { identifier: meta.op.identifier, attrs: meta.op.attrs }),
        image: meta.image.map(image_answer),
        git: meta.git.map(|git| pb::ResolveSourceGitResponse {
            checksum: git.checksum,
            r#ref: git.reference,
            commit_checksum: git.commit_checksum,
            commit_object: git.commit_object.into(),
            tag_object: git.tag_object.into(),
        }),
        http: meta.http.map(|http| pb::ResolveSourceHttpResponse {
            checksum: http.digest.to_string(),
            filename: http.filename,
            last_modified: http.last_modified.map(|seconds| Timestamp { seconds, nanos: 0 }),
            checksum_response: http.checksum.map(|(digest, suffix)| pb::ChecksumResponse { digest, suffix: suffix.into() }),
        }),
    }
}

fn image_answer(image: ImageMeta) -> pb::ResolveSourceImageResponse {
    pb::ResolveSourceImageResponse {
        digest: image.digest.to_string(),
        config: image.config.into(),
        attestation_chain: image.attestations.map(chain_answer),
    }
}

fn chain_answer(chain: AttestationChain) -> pb::AttestationChain {
    let text = |digest: Option<oci::Digest>| digest.map(|d| d.to_string()).unwrap_or_default();
    let blob = |descriptor: &[u8], data: bytes::Bytes| {
        let descriptor = serde_json::from_slice::<oci::Descriptor>(descriptor).ok();
        let descriptor = descriptor.map(|d| pb::Descriptor {
            media_type: d.media_type,
            digest: d.digest.to_string(),
            size: d.size as i64,
            annotations: d.annotations,
        });
        pb::Blob { descriptor, data: data.into() }
    };
    pb::AttestationChain {
        root: chain.root.to_string(),
        image_manifest: text(chain.image_manifest),
        attestation_manifest: text(chain.attestation_manifest),
        signature_manifests: chain.signature_manifests.iter().map(ToString::to_string).collect(),
        blobs: chain.blobs.into_iter().map(|(digest, (descriptor, data))| (digest.to_string(), blob(&descriptor, data))).collect(),
    }
}
