use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;

/// What a request carries. It can be sent again: after a redirect, a broken connection, a refused token.
#[derive(Clone)]
pub enum Payload {
    Bytes(Bytes),
    /// `size` bytes from `offset` on, read with positioned reads, whatever the file's own position.
    File {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
}

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Told how many bytes of the payload have been handed to the connection; starts again from 0 when the payload is sent again.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Large enough that the hop to a blocking thread does not count.
const CHUNK: u64 = 512 << 10;

impl Payload {
    pub(crate) fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }

    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    pub(crate) fn body(&self, progress: Option<Progress>) -> Body {
        match self {
            Self::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Self::File { file, offset, size } => file_body(file.clone(), *offset, *size, progress),
        }
    }
}

/// A body of unknown length that cannot be sent again.
#[derive(Clone)]
pub(crate) struct Once(Arc<Mutex<Option<Body>>>);

impl Once {
    pub fn new(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Self {
        let body = StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync();
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body, and to who comes later one that fails.
    pub fn take(&self) -> Body {
        let body = self.0.lock().expect("no holder of this lock panics").take();
        body.unwrap_or_else(|| {
            let gone = std::io::Error::other("what was streamed cannot be sent again");
            StreamBody::new(futures_util::stream::iter([Err(gone)])).boxed_unsync()
        })
    }
}

fn file_body(file: Arc<File>, start: u64, size: u64, progress: Option<Progress>) -> Body {
    let chunks = futures_util::stream::try_unfold(0u64, move |offset| {
        let (file, progress) = (file.clone(), progress.clone());
        async move {
            if offset >= size {
                return Ok(None);
            }
            let wanted = (size - offset).min(CHUNK) as usize;
            let chunk = task::blocking(move || {
                let mut chunk = vec![0; wanted];
                file.read_exact_at(&mut chunk, start + offset)?;
                Ok(Bytes::from(chunk))
            });
            let chunk = chunk.await.map_err(|fault| std::io::Error::other(fault.to_string()))?;
            let next = offset + chunk.len() as u64;
            if let Some(progress) = &progress {
                progress(next);
            }
            Ok(Some((Frame::data(chunk), next)))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}
