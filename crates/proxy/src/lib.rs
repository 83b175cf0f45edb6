//! An HTTP and HTTPS proxy for one step: asks whether it may, and remembers what came.
//!
//! Owns the certificate authority that steps trust while they run behind the proxy, the relaying of requests, and the list of what was
//! fetched. Does not know networks (it is given a listener and an [`Outlet`]), policies (it asks a [`Judge`]) or steps.
//!
//! Start at [`Proxy::serve`], then `relay`, where one request goes from the step to the world and its answer back.
//!
//! - Nothing is fetched that the judge has not allowed, under the URL that the judge said.
//! - A body counts as captured only if all of it went through; whatever else happened to it is on the list of what is incomplete.
//! - The authority's key never leaves the process.
mod authority;
mod body;
mod captured;
mod relay;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::{ClientConfig, RootCertStore};
use task::{Cancel, Drain};
use tokio::net::{TcpListener, TcpStream};

pub use captured::{Captured, Incomplete, Material, Request};

use authority::Authority;
use captured::Log;
use relay::Relay;

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("failed to make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("failed to set TLS up")]
    Tls(#[from] rustls::Error),
    #[error("failed to listen")]
    Listen(#[from] io::Error),
}

impl fault::Classified for ProxyError {
    fn kind(&self) -> fault::Kind {
        fault::Kind::Internal
    }
}

/// The way to the world.
#[async_trait]
pub trait Outlet: Send + Sync {
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream>;
}

/// Says what a step may fetch.
#[async_trait]
pub trait Judge: Send + Sync {
    /// The URL to fetch in the place of this one, most often itself; an error if nothing may be fetched. Credentials are masked in it.
    async fn judge(&self, url: &str) -> fault::Result<String>;
}

/// What the proxies of all steps share.
#[derive(Debug)]
pub struct Proxy {
    authority: Arc<Authority>,
    tls: Arc<ClientConfig>,
}

impl Proxy {
    /// With an authority of its own, which nobody outside trusts. Servers are believed if `roots` know them.
    pub fn new(roots: RootCertStore) -> Result<Self, ProxyError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Self { authority: Arc::new(Authority::new()?), tls: Arc::new(tls.with_root_certificates(roots).with_no_client_auth()) })
    }

    /// The certificate that a step must trust, in PEM.
    pub fn certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// Serves whoever connects, until [`Serving::finish`] or its drop. Must be called within a runtime.
    pub fn serve(&self, listener: std::net::TcpListener, outlet: Arc<dyn Outlet>, judge: Arc<dyn Judge>) -> Result<Serving, ProxyError> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (cancel, drain, log) = (Cancel::new(), Drain::new(), Log::default());
        let relay = Relay { authority: self.authority.clone(), tls: self.tls.clone(), outlet, judge, log: log.clone() };
        drain.spawn("proxy", accept(listener, Arc::new(relay), cancel.clone(), drain.clone()));
        Ok(Serving { cancel, drain, log })
    }
}

async fn accept(listener: TcpListener, relay: Arc<Relay>, cancel: Cancel, drain: Drain) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((connection, _)) => {
                let (relay, cancel) = (relay.clone(), cancel.clone());
                drain.spawn("proxied connection", async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = relay.connection(connection) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection to the proxy");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The proxy of one step.
#[derive(Debug)]
pub struct Serving {
    cancel: Cancel,
    drain: Drain,
    log: Log,
}

impl Serving {
    /// Ends all connections, and tells what went through them.
    pub async fn finish(self) -> Captured {
        self.cancel.cancel("the step has ended");
        self.drain.wait().await;
        self.log.take()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.cancel.cancel("the step has ended");
    }
}
