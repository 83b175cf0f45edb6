//! The body of an answer on its way to the step.
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use oci::Hasher;

use crate::captured::{Incomplete, Log, Material};

/// What is known of an exchange before its body.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub method: String,
    pub url: String,
    pub status: u16,
    /// The request or the answer is about a part.
    pub partial: bool,
}

impl Exchange {
    /// Why the body, though whole, is not what the URL stands for.
    fn flaw(&self) -> Option<&'static str> {
        if self.method != "GET" {
            Some("method_not_materializable")
        } else if self.partial || self.status == 206 {
            Some("partial_response")
        } else if self.status >= 400 {
            Some("unsuccessful_response")
        } else {
            None
        }
    }
}

/// Hashes what passes, and writes down what became of it.
pub(crate) struct Watched {
    inner: Incoming,
    open: Option<(Exchange, Hasher, Log)>,
}

impl Watched {
    pub fn new(inner: Incoming, exchange: Exchange, log: Log) -> Self {
        let mut watched = Self { inner, open: Some((exchange, Hasher::new(), log)) };
        if watched.inner.is_end_stream() {
            watched.close(true);
        }
        watched
    }

    fn close(&mut self, whole: bool) {
        let Some((exchange, hasher, log)) = self.open.take() else { return };
        let flaw = match exchange.flaw() {
            Some("unsuccessful_response") | None if !whole => Some("body_read_failed"),
            flaw => flaw,
        };
        log.write(|captured| match flaw {
            Some(reason) => captured.incomplete.push(Incomplete { method: exchange.method, url: exchange.url, reason }),
            // Redirects and the like: what they lead to counts.
            None if !(200..300).contains(&exchange.status) => {}
            None => captured.materials.push(Material { url: exchange.url, digest: hasher.finish() }),
        });
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &polled {
            Some(Ok(frame)) => {
                if let (Some(data), Some((_, hasher, _))) = (frame.data_ref(), &mut self.open) {
                    hasher.update(data);
                }
                // Now and not at the next poll: the step may be gone by then, having all it asked for.
                if self.inner.is_end_stream() {
                    self.close(true);
                }
            }
            Some(Err(_)) => self.close(false),
            None => self.close(true),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.close(false);
    }
}
