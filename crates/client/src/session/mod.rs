//! What a client serves to the daemon while it builds: one tunnel, many services.
//!
//! Only what was given is served, and the daemon is told the list when the tunnel opens.
pub mod auth;
mod content;
mod files;
mod outputs;
mod secrets;
mod ssh;
mod tunnel;
mod uploads;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proto::containerd::services::content::v1::content_server::ContentServer;
use proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use proto::moby::filesync::v1::auth_server::AuthServer;
use proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use proto::moby::sshforward::v1::ssh_server::SshServer;
use proto::moby::upload::v1::upload_server::UploadServer;
use tonic::service::RoutesBuilder;

pub use content::BlobDir;
pub use outputs::{Output, Target};
pub use secrets::Secret;
pub use ssh::Agent;
pub use tunnel::Running;
pub use uploads::{Upload, upload_url};

/// A session in preparation.
pub struct Session {
    id: String,
    shared_key: String,
    routes: RoutesBuilder,
    methods: Vec<&'static str>,
}

macro_rules! limited {
    ($server:expr) => {
        $server.max_decoding_message_size(wire::MAX_MESSAGE).max_encoding_message_size(wire::MAX_MESSAGE)
    };
}

impl Session {
    /// `shared_key` lets the daemon sync the same directories incrementally across builds; may be empty.
    pub fn new(shared_key: impl Into<String>) -> Self {
        let mut routes = RoutesBuilder::default();
        routes.add_service(tunnel::health());
        Self { id: crate::new_id(), shared_key: shared_key.into(), routes, methods: vec!["/grpc.health.v1.Health/Check"] }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Directories that the daemon may read, by name.
    pub fn files(mut self, directories: BTreeMap<String, PathBuf>) -> Self {
        self.methods.push("/moby.filesync.v1.FileSync/DiffCopy");
        self.routes.add_service(limited!(FileSyncServer::new(files::Files(directories))));
        self
    }

    /// Where exporters write, by their index.
    pub fn outputs(mut self, outputs: BTreeMap<usize, Output>) -> Self {
        self.methods.push("/moby.filesync.v1.FileSend/DiffCopy");
        self.routes.add_service(outputs::Outputs::new(outputs));
        self
    }

    pub fn secrets(mut self, secrets: BTreeMap<String, Secret>) -> Self {
        self.methods.push("/moby.buildkit.secrets.v1.Secrets/GetSecret");
        self.routes.add_service(SecretsServer::new(secrets::Secrets(secrets)));
        self
    }

    pub fn ssh(mut self, agents: BTreeMap<String, Agent>) -> Self {
        self.methods.extend(["/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"]);
        self.routes.add_service(SshServer::new(ssh::Agents(agents)));
        self
    }

    pub fn auth(mut self, credentials: Arc<dyn auth::Lookup>) -> Self {
        self.methods.push("/moby.filesync.v1.Auth/Credentials");
        self.routes.add_service(AuthServer::new(auth::Service(credentials)));
        self
    }

    /// Blob stores by id: `local:<dir>` for caches, `oci:<name>` for image layouts, `export` for an exporter's.
    pub fn content(mut self, stores: BTreeMap<String, BlobDir>) -> Self {
        const METHODS: [&str; 9] = [
            "/containerd.services.content.v1.Content/Info",
            "/containerd.services.content.v1.Content/Update",
            "/containerd.services.content.v1.Content/List",
            "/containerd.services.content.v1.Content/Delete",
            "/containerd.services.content.v1.Content/Read",
            "/containerd.services.content.v1.Content/Status",
            "/containerd.services.content.v1.Content/ListStatuses",
            "/containerd.services.content.v1.Content/Write",
            "/containerd.services.content.v1.Content/Abort",
        ];
        self.methods.extend(METHODS);
        self.routes.add_service(limited!(ContentServer::new(content::Stores::new(stores))));
        self
    }

    /// What the daemon may read once, by name; see [`upload_url`].
    pub fn uploads(mut self, uploads: BTreeMap<String, Upload>) -> Self {
        self.methods.push("/moby.upload.v1.Upload/Pull");
        self.routes.add_service(limited!(UploadServer::new(uploads::Uploads::new(uploads))));
        self
    }

    /// Opens the tunnel.
    pub async fn open(self, client: &crate::Client) -> fault::Result<Running> {
        tunnel::open(client, self.id, self.shared_key, &self.methods, self.routes.routes()).await
    }
}
