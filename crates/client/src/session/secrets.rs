//! `Secrets`: values by id.
use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use proto::moby::buildkit::secrets::v1 as pb;
use proto::moby::buildkit::secrets::v1::secrets_server;
use tonic::{Request, Response, Status};

/// Where a secret's value is.
#[derive(Clone)]
pub enum Secret {
    /// Read when it is asked for.
    File(PathBuf),
    Value(Bytes),
}

/// Bytes; the limit of stock clients.
const MAX_SECRET: u64 = 500 << 10;

pub struct Secrets(pub BTreeMap<String, Secret>);

#[tonic::async_trait]
impl secrets_server::Secrets for Secrets {
    async fn get_secret(&self, request: Request<pb::GetSecretRequest>) -> Result<Response<pb::GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = match self.0.get(&id) {
            None => return Err(Status::not_found(format!("secret {id}: not found"))),
            Some(Secret::Value(value)) => value.to_vec(),
            Some(Secret::File(path)) => {
                let failed = |e: std::io::Error| Status::unknown(format!("failed to read secret {id} from {}: {e}", path.display()));
                if tokio::fs::metadata(path).await.map_err(failed)?.len() > MAX_SECRET {
                    return Err(Status::unknown(format!("invalid secret size: {id} is larger than {MAX_SECRET} bytes")));
                }
                tokio::fs::read(path).await.map_err(failed)?
            }
        };
        if data.len() as u64 > MAX_SECRET {
            return Err(Status::unknown(format!("invalid secret size: {id} is larger than {MAX_SECRET} bytes")));
        }
        Ok(Response::new(pb::GetSecretResponse { data }))
    }
}
