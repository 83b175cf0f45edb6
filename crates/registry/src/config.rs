use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the client is told; nothing is read from the environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// By registry host with port exactly as in a reference; `docker.io` for Docker Hub. Mirrors have entries of their own.
    pub hosts: BTreeMap<String, Host>,
    /// Blob transfers at a time and registry domain; manifests and configs get one slot more.
    pub concurrency: usize,
    pub user_agent: String,
    pub proxy: Proxy,
    /// A PEM bundle to trust instead of the machine's; where neither can be read, the roots compiled into the program.
    pub system_roots: Option<PathBuf>,
    pub retry: Retry,
    pub timeouts: Timeouts,
}

/// How one registry host is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// `host[:port][/path]`, asked in this order before the host itself, for pulls only.
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset: only for localhost.
    pub http: Option<bool>,
    /// No certificate check. Together with plain HTTP: HTTPS first, HTTP where that fails.
    pub insecure: bool,
    /// PEM files that are trusted beside the system's.
    pub ca: Vec<PathBuf>,
    pub keypairs: Vec<Keypair>,
    /// Directories of `*.crt` (trusted) and `X.cert` with `X.key` (client certificates). Missing ones are ignored.
    pub tls_dirs: Vec<PathBuf>,
}

/// A client certificate in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keypair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Proxy addresses (`http://[user:password@]host:port`) for the two schemes, and the hosts that go without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    pub http: Option<String>,
    pub https: Option<String>,
    /// As in `NO_PROXY`: domains with their subdomains, addresses, CIDR blocks, `*`.
    pub no_proxy: Vec<String>,
}

/// Waits double from `first`; after `attempts` tries the last error stands.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub first: Duration,
    pub attempts: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub dial: Duration,
    pub tls: Duration,
    /// From the end of the request to the head of the answer.
    pub answer: Duration,
    /// Without a byte of a body.
    pub stall: Duration,
    /// An unused connection is kept this long.
    pub idle: Duration,
}

impl Timeouts {
    /// For the answer to a request that carries so many bytes. A large one may take its time.
    pub(crate) fn for_upload(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / (64 << 10))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            concurrency: 4,
            user_agent: "buildkit/v0.0.0+unknown".into(),
            proxy: Proxy::default(),
            system_roots: None,
            retry: Retry { first: Duration::from_secs(1), attempts: 4 },
            timeouts: Timeouts {
                dial: Duration::from_secs(30),
                tls: Duration::from_secs(10),
                answer: Duration::from_secs(300),
                stall: Duration::from_secs(60),
                idle: Duration::from_secs(120),
            },
        }
    }
}

impl Proxy {
    /// The proxy for a request, if any. Loopback is never proxied.
    pub(crate) fn pick(&self, https: bool, host: &str) -> Option<&str> {
        let proxy = if https { self.https.as_deref() } else { self.http.as_deref() }.filter(|p| !p.is_empty())?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let direct = is_loopback(&bare) || self.no_proxy.iter().any(|rule| exempt(rule.trim(), &bare));
        (!direct).then_some(proxy)
    }
}

fn exempt(rule: &str, host: &str) -> bool {
    if rule == "*" {
        return true;
    }
    let rule = rule.to_ascii_lowercase();
    if let (Some((net, bits)), Ok(address)) = (rule.split_once('/'), host.parse::<std::net::IpAddr>()) {
        return in_block(net, bits, address);
    }
    let rule = rule.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(rule.as_str(), |(name, _)| name);
    let name = rule.trim_start_matches("*.").trim_start_matches('.');
    !name.is_empty() && (host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
}

fn in_block(net: &str, bits: &str, address: std::net::IpAddr) -> bool {
    use std::net::IpAddr;
    let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let mask = |width: u32| if bits == 0 { 0 } else { u128::MAX << (width - bits.min(width)) };
    match (net, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => (u128::from(u32::from(n) ^ u32::from(a)) & mask(32) & u128::from(u32::MAX)) == 0,
        (IpAddr::V6(n), IpAddr::V6(a)) => ((u128::from(n) ^ u128::from(a)) & mask(128)) == 0,
        _ => false,
    }
}

/// `localhost` or a loopback address, without a port and brackets.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_by_scheme_and_exemption() {
        let proxy = Proxy {
            http: None,
            https: Some("http://p:3128".into()),
            no_proxy: vec![".example.com".into(), "10.0.0.0/8".into(), "exact.org:443".into(), "".into()],
        };
        for (host, direct) in [
            ("registry.io", false),
            ("example.com", true),
            ("a.example.com", true),
            ("notexample.com", false),
            ("10.1.2.3", true),
            ("11.1.2.3", false),
            ("exact.org", true),
            ("localhost", true),
            ("127.0.0.5", true),
            ("[::1]", true),
        ] {
            assert_eq!(proxy.pick(true, host).is_none(), direct, "{host}");
            assert_eq!(proxy.pick(false, host), None);
        }
    }
}
