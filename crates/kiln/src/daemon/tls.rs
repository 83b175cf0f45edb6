//! TLS for the daemon's listeners.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// With it, clients must present a certificate that it signed.
    pub ca: Option<PathBuf>,
}

impl Tls {
    /// `None` where TLS is not configured.
    pub fn acceptor(&self) -> Result<Option<TlsAcceptor>, String> {
        let (cert, key) = match (&self.cert, &self.key) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            _ => return Err("you must specify key and cert file if one is specified".into()),
        };
        let chain = certificates(cert).map_err(|e| format!("could not load server key pair: {e}"))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("could not load server key pair: {}: {e}", key.display()))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("could not set up TLS: {e}"))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(ca).map_err(|e| format!("could not read ca certificate: {e}"))? {
                    roots.add(certificate).map_err(|e| format!("failed to append ca cert: {e}"))?;
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| format!("failed to append ca cert: {e}"))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| format!("could not load server key pair: {e}"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| format!("{}: {e}", path.display()))?
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{}: {e}", path.display()))?;
    if found.is_empty() { Err(format!("{}: no certificate in it", path.display())) } else { Ok(found) }
}
