//! What refers to a manifest: signatures, statements.
use std::sync::Arc;

use http::{Method, StatusCode};
use oci::{Descriptor, Digest, Document, media};

use crate::auth::escape;
use crate::client::{Repository, accepting};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::resolve::{MAX_MANIFEST, denied};
use crate::transport::Call;

impl Repository {
    /// The manifests that name `subject` as theirs; with `artifact_type`, those of that type. A registry without such lists keeps one under a tag made of
    /// the digest, if at all.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let _slot = self.slot("+json").await;
        let query: Vec<String> = artifact_type.iter().map(|kind| format!("artifactType={}", escape(kind))).collect();
        let listed = self.list(format!("referrers/{subject}"), query).await;
        let listed = match listed {
            Ok(listed) => Ok(listed),
            Err(error) => {
                tracing::debug!(%subject, error = %fault::chain(&error), "no list of referrers, trying the tag");
                self.list(format!("manifests/{}", subject.to_string().replacen(':', "-", 1)), Vec::new()).await
            }
        };
        match listed {
            Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
            // Registries may ignore the question's type.
            listed => Ok(listed?.into_iter().filter(|found| artifact_type.is_none_or(|kind| found.artifact_type == kind)).collect()),
        }
    }

    async fn list(&self, suffix: String, query: Vec<String>) -> Result<Vec<Descriptor>> {
        let asked = Arc::new((suffix, query));
        self.pull(|endpoint| {
            let asked = asked.clone();
            Box::pin(async move { self.list_at(&endpoint, &asked.0, &asked.1).await })
        })
        .await
    }

    async fn list_at(&self, endpoint: &Endpoint, suffix: &str, query: &[String]) -> Result<Vec<Descriptor>> {
        let call = accepting(Call::new(Method::GET, self.url(endpoint, suffix, query)?), media::OCI_INDEX);
        let answer = self.send(endpoint, &self.scopes(false), false, call).await.map_err(denied)?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => return Err(RegistryError::NotFound { what: format!("{}/{suffix}", self.name()) }),
            _ => return Err(answer.unexpected().await),
        }
        let url = answer.url();
        let bytes = answer.bytes(MAX_MANIFEST, self.stall()).await?;
        match Document::parse(media::OCI_INDEX, &bytes) {
            Ok(Document::Index(index)) => Ok(index.manifests),
            Ok(Document::Manifest(_)) => Err(RegistryError::Answer { url, problem: "no list of referrers".into() }),
            Err(source) => Err(RegistryError::Manifest { url, source }),
        }
    }
}
