//! Certificates for the servers that a step believes to talk to.
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;

use crate::ProxyError;

const NAME: &str = "BuildKit exec proxy";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the authority is good.
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);
/// Names whose certificates are kept.
const KEPT: usize = 1024;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: String,
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    by_host: HashMap<String, (Instant, Arc<ServerConfig>)>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    pub fn new() -> Result<Self, ProxyError> {
        let mut params = params(YEARS);
        params.distinguished_name.push(DnType::CommonName, NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { certificate: pem(issuer.der()), issuer, leaves: Mutex::default() })
    }

    /// In PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What a server with that name, or address, presents. HTTP/1.1 only.
    pub fn server(&self, host: &str) -> Result<Arc<ServerConfig>, ProxyError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = leaves.by_host.get(host)
            && made.elapsed() < DAY - HOUR
        {
            return Ok(config.clone());
        }
        let config = Arc::new(self.issue(host)?);
        if leaves.by_host.insert(host.to_owned(), (Instant::now(), config.clone())).is_none() {
            leaves.order.push_back(host.to_owned());
        }
        if leaves.order.len() > KEPT
            && let Some(oldest) = leaves.order.pop_front()
        {
            leaves.by_host.remove(&oldest);
        }
        Ok(config)
    }

    fn issue(&self, host: &str) -> Result<ServerConfig, ProxyError> {
        let mut params = params(DAY);
        params.distinguished_name.push(DnType::CommonName, host);
        params.subject_alt_names = vec![match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.try_into()?),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.collect::<Vec<_>>().join("\n"))
}

/// Good from an hour ago, for clocks that differ.
fn params(validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = (now - HOUR).into();
    params.not_after = (now + validity).into();
    params
}
