//! TLS settings of one host: whom to trust, what to present.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::config::{Host, Keypair};
use crate::error::{RegistryError, Result};

/// Where distributions keep the certificates of the roots that they trust.
pub const ROOT_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The machine's roots; the compiled-in ones where it has none.
pub fn system_roots(bundle: Option<&Path>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let candidates = bundle.into_iter().map(Path::to_owned).chain(ROOT_BUNDLES.iter().map(PathBuf::from));
    for path in candidates {
        if let Ok(certificates) = read_certificates(&path) {
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added > 0 {
                return roots;
            }
        }
    }
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots
}

/// The client settings for `host`. HTTP/1.1 only: no protocol is negotiated.
pub(crate) fn client_config(host: &Host, system: &RootCertStore) -> Result<ClientConfig> {
    let host = with_directories(host);
    let mut roots = system.clone();
    for path in &host.ca {
        let certificates =
            read_certificates(path).map_err(|source| RegistryError::ReadFile { path: path.display().to_string(), source })?;
        roots.add_parsable_certificates(certificates);
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions");
    let builder = if host.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider.signature_verification_algorithms)))
    } else {
        builder.with_root_certificates(roots)
    };
    match load_keypairs(&host.keypairs, &provider)? {
        keys if keys.is_empty() => Ok(builder.with_no_client_auth()),
        keys => Ok(builder.with_client_cert_resolver(Arc::new(Keys(keys)))),
    }
}

/// The host with what its directories hold written out.
fn with_directories(host: &Host) -> Host {
    let mut host = host.clone();
    for dir in std::mem::take(&mut host.tls_dirs) {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.sort();
        for path in files {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => host.ca.push(path),
                Some("cert") => host.keypairs.push(Keypair { key: path.with_extension("key"), cert: path }),
                _ => {}
            }
        }
    }
    host
}

fn read_certificates(path: &Path) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    // A broken block in a bundle of many does not make the rest unusable.
    Ok(CertificateDer::pem_slice_iter(&pem).filter_map(|c| c.ok()).collect())
}

fn load_keypairs(pairs: &[Keypair], provider: &CryptoProvider) -> Result<Vec<Arc<rustls::sign::CertifiedKey>>> {
    pairs
        .iter()
        .map(|pair| {
            let fail = |problem: String| RegistryError::Keypair { path: pair.cert.display().to_string(), problem };
            let chain = read_certificates(&pair.cert).map_err(|e| fail(e.to_string()))?;
            if chain.is_empty() {
                return Err(fail("no certificate in the file".into()));
            }
            let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|e| fail(e.to_string()))?;
            let key = provider.key_provider.load_private_key(key).map_err(|e| fail(e.to_string()))?;
            Ok(Arc::new(rustls::sign::CertifiedKey::new(chain, key)))
        })
        .collect()
}

/// Presents the first certificate whose key can sign what the server takes.
#[derive(Debug)]
struct Keys(Vec<Arc<rustls::sign::CertifiedKey>>);

impl rustls::client::ResolvesClientCert for Keys {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.iter().find(|k| k.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `insecure = true`: any certificate will do, but the peer must own its key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
