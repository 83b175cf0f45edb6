//! One session over the wire: [`session::Session`] in terms of gRPC calls.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use proto::moby;
use session::{
    ContentStore, Credentials, Download, Duplex, ExporterRequest, FileStream, FilesRequest, Session, Token, TokenRequest, Upload,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataMap;
use wire::Connection;
use wire::status::into_fault;

use super::content::RemoteContent;
use super::streams::{self, Incoming, PacketStream, WireDownload, WireUpload};

/// What a client said about its session when it opened it.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub id: String,
    pub shared_key: String,
    /// Lower case, `/<service>/<method>`.
    pub methods: BTreeSet<String>,
    /// What tests of clients set to have dead sessions found sooner.
    pub health_interval: Option<Duration>,
}

pub struct WireSession {
    identity: Identity,
    connection: Connection,
}

/// How long a call for credentials may take; it may wait for a person or a helper program.
const AUTH_TIMEOUT: Duration = Duration::from_secs(60);

macro_rules! client {
    ($self:ident, $module:path, $client:ident) => {{
        use $module as module;
        module::$client::with_origin($self.connection.clone(), http::Uri::from_static("http://localhost"))
            .max_decoding_message_size(wire::MAX_MESSAGE)
            .max_encoding_message_size(wire::MAX_MESSAGE)
    }};
}

impl WireSession {
    pub fn new(identity: Identity, connection: Connection) -> Self {
        Self { identity, connection }
    }

    /// Cancelled when the tunnel is gone; cancelling it gives the tunnel up.
    pub(crate) fn life(&self) -> &task::Cancel {
        self.connection.life()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) async fn check_health(&self) -> Result<(), Status> {
        client!(self, proto::grpc::health::v1::health_client, HealthClient)
            .check(proto::grpc::health::v1::HealthCheckRequest::default())
            .await?;
        Ok(())
    }

    /// Makes a call with one answer, ending it when the session ends.
    async fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
        tokio::select! {
            biased;
            outcome = call => outcome.map(tonic::Response::into_inner).map_err(|status| into_fault(&status)),
            () = self.life().cancelled() => Err(Fault::new(Kind::Canceled, format!("session {} is closed: {}", self.identity.id, self.life().reason()))),
        }
    }

    pub(super) async fn check_policy(
        &self,
        request: moby::buildkit::v1::sourcepolicy::policysession::CheckPolicyRequest,
    ) -> Result<moby::buildkit::v1::sourcepolicy::policysession::CheckPolicyResponse> {
        let mut client = client!(self, moby::buildkit::v1::sourcepolicy::policysession::policy_verifier_client, PolicyVerifierClient);
        self.call(client.check_policy(request)).await
    }

    /// A call that may wait for a person or a helper program, but not for ever.
    async fn auth<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
        let limited = async {
            tokio::time::timeout(AUTH_TIMEOUT, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")))
        };
        self.call(limited).await
    }

    fn file_send(&self, exporter: usize, metadata: &BTreeMap<String, String>, multi_platform: bool) -> Result<MetadataMap> {
        const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
        if !self.supports(METHOD) {
            return Err(Fault::new(Kind::Unknown, format!("method {METHOD} not supported by the client")));
        }
        let mut headers = MetadataMap::new();
        streams::set(&mut headers, "buildkit-attachable-exporter-id", &exporter.to_string())?;
        for (key, value) in metadata {
            // What metadata cannot carry, clients cannot expect there.
            if let Err(fault) = streams::set(&mut headers, &format!("exporter-md-{key}"), value) {
                tracing::debug!(%fault, "export metadata left out");
            }
        }
        if multi_platform {
            streams::set(&mut headers, "buildkit-exporter-multi-platform", "1")?;
        }
        Ok(headers)
    }
}

#[async_trait]
impl Session for WireSession {
    fn id(&self) -> &str {
        &self.identity.id
    }

    fn shared_key(&self) -> &str {
        &self.identity.shared_key
    }

    fn supports(&self, method: &str) -> bool {
        self.identity.methods.contains(&method.to_ascii_lowercase())
    }

    async fn closed(&self) {
        self.life().cancelled().await;
    }

    async fn files(&self, request: FilesRequest) -> Result<Box<dyn FileStream>> {
        if !self.supports("/moby.filesync.v1.FileSync/DiffCopy") {
            return Err(Fault::new(Kind::Unknown, "no local sources enabled"));
        }
        let mut headers = MetadataMap::new();
        streams::set_list(&mut headers, "dir-name", std::slice::from_ref(&request.name))?;
        streams::set_list(&mut headers, "include-patterns", &request.include_patterns)?;
        streams::set_list(&mut headers, "exclude-patterns", &request.exclude_patterns)?;
        streams::set_list(&mut headers, "followpaths", &request.follow_paths)?;
        let (sender, outgoing) = streams::packet_queue();
        let mut client = client!(self, moby::filesync::v1::file_sync_client, FileSyncClient);
        let incoming = Incoming::open(self.life(), async move { client.diff_copy(streams::request(headers, outgoing)).await });
        Ok(Box::new(PacketStream::new(sender, incoming)))
    }

    async fn upload(&self, exporter: usize, metadata: &BTreeMap<String, String>) -> Result<Box<dyn Upload>> {
        let headers = self.file_send(exporter, metadata, false)?;
        let (sender, outgoing) = mpsc::channel(streams::QUEUE);
        let outgoing = ReceiverStream::new(outgoing).map(|data| moby::filesync::v1::BytesMessage { data });
        let mut client = client!(self, moby::filesync::v1::file_send_client, FileSendClient);
        let incoming = Incoming::open(self.life(), async move { client.diff_copy(streams::request(headers, outgoing)).await });
        Ok(Box::new(WireUpload::new(sender, incoming)))
    }

    async fn upload_tree(&self, exporter: usize, metadata: &BTreeMap<String, String>, multi_platform: bool) -> Result<Box<dyn FileStream>> {
        let headers = self.file_send(exporter, metadata, multi_platform)?;
        let (sender, outgoing) = streams::packet_queue();
        // The same method carries packets here, which its declaration does not say.
        let connection = self.connection.clone();
        let call = streams::packets_call(connection, "/moby.filesync.v1.FileSend/DiffCopy", streams::request(headers, outgoing));
        let incoming = Incoming::open(self.life(), call);
        Ok(Box::new(PacketStream::new(sender, incoming)))
    }

    async fn secret(&self, id: &str) -> Result<Option<Bytes>> {
        use moby::buildkit::secrets::v1::GetSecretRequest;
        let mut client = client!(self, moby::buildkit::secrets::v1::secrets_client, SecretsClient);
        let request = GetSecretRequest { id: id.to_owned(), ..Default::default() };
        match self.call(client.get_secret(request)).await {
            Ok(response) => Ok(Some(response.data.into())),
            Err(fault) if matches!(fault.kind(), Kind::NotFound | Kind::Unimplemented) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn ssh_available(&self, id: &str) -> Result<bool> {
        use moby::sshforward::v1::CheckAgentRequest;
        let mut client = client!(self, moby::sshforward::v1::ssh_client, SshClient);
        match self.call(client.check_agent(CheckAgentRequest { id: id.to_owned() })).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.kind() == Kind::Unimplemented => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    async fn ssh(&self, id: &str) -> Result<Box<dyn Duplex>> {
        let mut headers = MetadataMap::new();
        streams::set(&mut headers, "buildkit.ssh.id", if id.is_empty() { "default" } else { id })?;
        let (sender, outgoing) = mpsc::channel(streams::QUEUE);
        let outgoing = ReceiverStream::new(outgoing).map(|data| moby::sshforward::v1::BytesMessage { data });
        let mut client = client!(self, moby::sshforward::v1::ssh_client, SshClient);
        let incoming = Incoming::open(self.life(), async move { client.forward_agent(streams::request(headers, outgoing)).await });
        Ok(Box::new(wire::Pipe::new(incoming.map(|message| message.map(|m| m.data)), sender)))
    }

    async fn credentials(&self, host: &str) -> Result<Credentials> {
        let mut client = client!(self, moby::filesync::v1::auth_client, AuthClient);
        match self.auth(client.credentials(moby::filesync::v1::CredentialsRequest { host: host.to_owned() })).await {
            Ok(answer) => Ok(Credentials { username: answer.username, secret: answer.secret }),
            Err(fault) if fault.kind() == Kind::Unimplemented => Ok(Credentials::default()),
            Err(fault) => Err(fault),
        }
    }

    async fn fetch_token(&self, request: TokenRequest) -> Result<Token> {
        let TokenRequest { client_id, host, realm, service, scopes } = request;
        let mut client = client!(self, moby::filesync::v1::auth_client, AuthClient);
        let request = moby::filesync::v1::FetchTokenRequest { client_id, host, realm, service, scopes };
        let answer = self.auth(client.fetch_token(request)).await?;
        Ok(Token { token: answer.token, expires_in: answer.expires_in, issued_at: answer.issued_at })
    }

    async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Bytes>> {
        let mut client = client!(self, moby::filesync::v1::auth_client, AuthClient);
        let request = moby::filesync::v1::GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() };
        match self.auth(client.get_token_authority(request)).await {
            Ok(answer) => Ok(Some(answer.public_key.into())),
            Err(fault) if matches!(fault.kind(), Kind::Unimplemented | Kind::Unavailable) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn verify_token_authority(&self, host: &str, payload: &[u8], salt: &[u8]) -> Result<Bytes> {
        let mut client = client!(self, moby::filesync::v1::auth_client, AuthClient);
        let request =
            moby::filesync::v1::VerifyTokenAuthorityRequest { host: host.to_owned(), payload: payload.to_vec(), salt: salt.to_vec() };
        Ok(self.auth(client.verify_token_authority(request)).await?.signed.into())
    }

    fn content(&self, store_id: &str) -> Arc<dyn ContentStore> {
        Arc::new(RemoteContent::new(self.connection.clone(), store_id.to_owned()))
    }

    async fn pull_upload(&self, id: &str) -> Result<Box<dyn Download>> {
        let mut headers = MetadataMap::new();
        streams::set(&mut headers, "urlpath", &format!("/{}", id.trim_start_matches('/')))?;
        streams::set(&mut headers, "urlhost", "buildkit-session")?;
        let mut client = client!(self, moby::upload::v1::upload_client, UploadClient);
        let outgoing = tokio_stream::empty::<moby::upload::v1::BytesMessage>();
        let incoming = Incoming::open(self.life(), async move { client.pull(streams::request(headers, outgoing)).await });
        Ok(Box::new(WireDownload::new(incoming.map(|message| message.map(|m| m.data)))))
    }

    async fn find_exporters(&self, metadata: &BTreeMap<String, Bytes>, refs: &[String]) -> Result<Vec<ExporterRequest>> {
        let mut client = client!(self, moby::exporter::v1::exporter_client, ExporterClient);
        let metadata = metadata.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect();
        match self.call(client.find_exporters(moby::exporter::v1::FindExportersRequest { metadata, refs: refs.to_vec() })).await {
            Ok(answer) => Ok(answer.exporters.into_iter().map(|e| ExporterRequest { kind: e.r#type, attrs: e.attrs }).collect()),
            Err(fault) if matches!(fault.kind(), Kind::Unimplemented | Kind::Unavailable) => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    async fn finalize_export(&self, response: &BTreeMap<String, String>) -> Result<()> {
        let mut client = client!(self, moby::exporter::v1::exporter_client, ExporterClient);
        match self.call(client.finalize_export(moby::exporter::v1::FinalizeExportRequest { exporter_response: response.clone() })).await {
            Ok(_) => Ok(()),
            Err(fault) if matches!(fault.kind(), Kind::Unimplemented | Kind::Unavailable) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}
