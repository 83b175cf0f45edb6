//! `Upload`: what the daemon may read once, such as a build context on standard input.
use std::collections::BTreeMap;
use std::io::Read;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use futures_core::Stream;
use proto::moby::upload::v1 as pb;
use proto::moby::upload::v1::upload_server;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A stream of bytes with an end.
pub type Upload = Box<dyn Read + Send>;

/// Where the daemon finds an upload of this name, as the address of a build context.
pub fn upload_url(name: &str) -> String {
    format!("http://buildkit-session/{name}")
}

pub struct Uploads(Mutex<BTreeMap<String, Upload>>);

/// Bytes of a message.
const CHUNK: usize = 256 << 10;
const QUEUE: usize = 4;

impl Uploads {
    pub fn new(uploads: BTreeMap<String, Upload>) -> Self {
        Self(Mutex::new(uploads))
    }

    fn take(&self, name: &str) -> Option<Upload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

#[tonic::async_trait]
impl upload_server::Upload for Uploads {
    type PullStream = Pin<Box<dyn Stream<Item = Result<pb::BytesMessage, Status>> + Send>>;

    async fn pull(&self, request: Request<Streaming<pb::BytesMessage>>) -> Result<Response<Self::PullStream>, Status> {
        let path = request.metadata().get("urlpath").and_then(|path| path.to_str().ok()).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let upload = self.take(name).ok_or_else(|| Status::not_found(format!("no http response from session for {name}")))?;
        let (sender, outgoing) = mpsc::channel(QUEUE);
        let sending = move || {
            send(upload, &sender);
            Ok(())
        };
        task::spawn("upload", task::blocking(sending));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Runs on a blocking thread, until the end, a failure, or nobody wants more.
fn send(mut upload: Upload, sender: &mpsc::Sender<Result<pb::BytesMessage, Status>>) {
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        let message = match upload.by_ref().take(CHUNK as u64).read_to_end(&mut data) {
            Ok(0) => return,
            Ok(_) => Ok(pb::BytesMessage { data: data.into() }),
            Err(error) => Err(Status::unknown(format!("failed to read what is uploaded: {error}"))),
        };
        let failed = message.is_err();
        if sender.blocking_send(message).is_err() || failed {
            return;
        }
    }
}
