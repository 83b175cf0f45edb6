//! Where a registry's requests go: mirrors first, then the registry itself.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use http::Uri;
use rustls::RootCertStore;

use crate::auth::escape;
use crate::config::{Config, Host, is_loopback};
use crate::error::{RegistryError, Result, TransportError};
use crate::tls;
use crate::traffic::Meter;
use crate::transport::{Answer, Call, Transport};

/// Hosts that are remembered to speak no TLS.
const MAX_PLAIN: usize = 4096;

/// One API root.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// With port if one is given.
    pub host: String,
    /// `/v2`, perhaps with a path below.
    root: String,
    scheme: Scheme,
    /// For mirrors: whose images are asked for.
    namespace: Option<String>,
    pub transport: Transport,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    /// HTTPS, unless the host turns out not to speak it.
    Either,
}

/// Builds endpoints and remembers what they need.
pub(crate) struct Endpoints {
    pub config: Config,
    roots: Mutex<Option<Arc<RootCertStore>>>,
    transports: Mutex<HashMap<(String, bool), Transport>>,
    /// Hosts that answered plainly where TLS was tried.
    plain: Mutex<HashSet<String>>,
    /// Of all transports.
    pub meter: Arc<Meter>,
}

impl Endpoints {
    pub fn new(config: Config) -> Self {
        Self { config, roots: Mutex::default(), transports: Mutex::default(), plain: Mutex::default(), meter: Arc::default() }
    }

    /// Mirrors in their order, then the origin.
    pub fn for_pull(&self, domain: &str, insecure: bool) -> Result<Vec<Endpoint>> {
        let mirrors = self.config.hosts.get(domain).map_or(&[][..], |h| &h.mirrors);
        let mirrors = mirrors.iter().map(|mirror| {
            let mirror = mirror.trim_end_matches('/').rsplit_once("://").map_or(mirror.trim_end_matches('/'), |(_, rest)| rest);
            let (host, path) = mirror.split_once('/').map_or((mirror, ""), |(host, path)| (host, path));
            let root = if path.is_empty() { "/v2".to_owned() } else { format!("/v2/{path}") };
            let settings = self.config.hosts.get(host).cloned().unwrap_or_default();
            self.endpoint(host, host, root, &settings, false, Some(domain.to_owned()))
        });
        mirrors.chain([self.origin(domain, insecure)]).collect()
    }

    /// The registry itself. `insecure` overrides its settings: HTTPS without checks, then HTTP.
    pub fn origin(&self, domain: &str, insecure: bool) -> Result<Endpoint> {
        let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let settings = match insecure {
            true => Host { http: Some(true), insecure: true, ..Host::default() },
            false => self.config.hosts.get(domain).cloned().unwrap_or_default(),
        };
        self.endpoint(domain, host, "/v2".into(), &settings, insecure, None)
    }

    fn endpoint(
        &self,
        key: &str,
        host: &str,
        root: String,
        settings: &Host,
        insecure: bool,
        namespace: Option<String>,
    ) -> Result<Endpoint> {
        let authority: http::uri::Authority = host.parse().map_err(|_| RegistryError::Host { host: host.to_owned() })?;
        let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
        let http = settings.http.unwrap_or_else(|| is_loopback(bare));
        let scheme = match (settings.insecure, http) {
            (true, true) => Scheme::Either,
            (false, true) => Scheme::Http,
            (_, false) => Scheme::Https,
        };
        Ok(Endpoint { host: host.to_owned(), root, scheme, namespace, transport: self.transport(key, settings, insecure)? })
    }

    /// The client with the settings of the host `key`; hosts without an entry share one, and so do those that are asked without checks.
    pub fn transport(&self, key: &str, settings: &Host, insecure: bool) -> Result<Transport> {
        let own = !insecure && self.config.hosts.contains_key(key);
        let key = (if own { key.to_owned() } else { String::new() }, insecure);
        if let Some(known) = self.transports.lock().expect("no holder of this lock panics").get(&key) {
            return Ok(known.clone());
        }
        let transport = Transport::new(&self.config, settings, &self.roots(), self.meter.clone())?;
        self.transports.lock().expect("no holder of this lock panics").insert(key, transport.clone());
        Ok(transport)
    }

    /// Read when first needed.
    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = self.roots.lock().expect("no holder of this lock panics");
        roots.get_or_insert_with(|| Arc::new(tls::system_roots(self.config.system_roots.as_deref()))).clone()
    }

    /// Sends a call to an endpoint, over plain HTTP where the endpoint allows that and does not speak TLS.
    pub async fn send(&self, endpoint: &Endpoint, call: Call) -> Result<Answer> {
        if endpoint.scheme != Scheme::Either || call.uri.scheme_str() != Some("https") {
            return endpoint.transport.send(call).await;
        }
        match endpoint.transport.send(call.clone()).await {
            Err(RegistryError::Request { source, .. }) if speaks_no_tls(&source, &call.uri) => {
                self.remember_plain(&endpoint.host);
                let mut parts = call.uri.clone().into_parts();
                parts.scheme = Some(http::uri::Scheme::HTTP);
                let uri = Uri::from_parts(parts).expect("only the scheme was exchanged");
                endpoint.transport.send(Call { uri, ..call }).await
            }
            other => other,
        }
    }

    fn remember_plain(&self, host: &str) {
        let mut plain = self.plain.lock().expect("no holder of this lock panics");
        // What is forgotten costs one more try.
        if plain.len() >= MAX_PLAIN {
            plain.clear();
        }
        plain.insert(host.to_owned());
    }

    /// The URL of `suffix` in a repository. `query` holds whole, escaped pairs.
    pub fn url(&self, endpoint: &Endpoint, repository: &str, suffix: &str, query: &[String]) -> Result<Uri> {
        let plain = match endpoint.scheme {
            Scheme::Http => true,
            Scheme::Https => false,
            Scheme::Either => self.plain.lock().expect("no holder of this lock panics").contains(&endpoint.host),
        };
        let mut pairs = query.to_vec();
        pairs.extend(endpoint.namespace.as_ref().map(|ns| format!("ns={}", escape(ns))));
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let text = format!("{}://{}{}/{repository}/{suffix}{query}", if plain { "http" } else { "https" }, endpoint.host, endpoint.root);
        text.parse().map_err(|_| RegistryError::Host { host: endpoint.host.clone() })
    }
}

fn speaks_no_tls(error: &TransportError, uri: &Uri) -> bool {
    let refused = match error {
        TransportError::PlainAnswer | TransportError::TlsTimeout => return true,
        TransportError::Dial { source, .. } => source.kind() == std::io::ErrorKind::ConnectionRefused,
        TransportError::DialTimeout { .. } => true,
        _ => false,
    };
    // With a port of its own, another scheme would ask the same closed port.
    refused && uri.port_u16().is_none()
}
