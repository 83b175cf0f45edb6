//! Where a daemon listens, and how to get a connection to it.
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use wire::Connection;

#[derive(Debug, Clone)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `host:port`
    Tcp {
        address: String,
        tls: Option<Tls>,
    },
    /// A program whose standard input and output are the connection.
    Program(Vec<String>),
}

/// TLS as PEM texts.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Empty: the host of the address.
    pub server_name: String,
    /// `None`: the well-known authorities.
    pub ca: Option<Vec<u8>>,
    /// Certificate chain and key of this client.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("address {address} does not contain proto, you meant unix://{address} ?")]
    NoScheme { address: String },
    #[error("addr {address} not supported")]
    Scheme { address: String },
    #[error("address {address} is malformed: {problem}")]
    Address { address: String, problem: &'static str },
    #[error("cannot connect to {address}")]
    Io { address: String, source: std::io::Error },
    #[error("no connection to {address} within {} s", limit.as_secs())]
    Timeout { address: String, limit: Duration },
    #[error("{what} cannot be used for TLS: {problem}")]
    Tls { what: &'static str, problem: String },
    #[error("cannot speak HTTP/2 with {address}")]
    Http { address: String, source: hyper::Error },
}

impl fault::Classified for ConnectError {
    fn kind(&self) -> fault::Kind {
        match self {
            Self::NoScheme { .. } | Self::Scheme { .. } | Self::Address { .. } | Self::Tls { .. } => fault::Kind::Invalid,
            Self::Io { .. } | Self::Timeout { .. } | Self::Http { .. } => fault::Kind::Unavailable,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Self::Program(args) => f.write_str(&args.join(" ")),
        }
    }
}

impl Endpoint {
    /// Reads an address. Schemes beyond `unix` and `tcp` run a program that reaches the daemon's `dial-stdio`.
    pub fn parse(address: &str, tls: Option<Tls>) -> Result<Self, ConnectError> {
        let (scheme, rest) = address.split_once("://").ok_or_else(|| ConnectError::NoScheme { address: address.to_owned() })?;
        let malformed = |problem| ConnectError::Address { address: address.to_owned(), problem };
        let (host, query) = rest.split_once('?').unwrap_or((rest, ""));
        let option = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).filter(|v| !v.is_empty());
        let flags = |names: &[&str]| -> Vec<String> {
            names.iter().filter_map(|name| option(name).map(|value| format!("--{name}={value}"))).collect()
        };
        if host.is_empty() {
            return Err(malformed("nothing behind the scheme"));
        }
        let program = |head: &[&str], flags: Vec<String>, tail: &[&str]| {
            Self::Program(head.iter().map(|s| (*s).to_owned()).chain(flags).chain(tail.iter().map(|s| (*s).to_owned())).collect())
        };
        Ok(match scheme {
            "unix" => Self::Unix(rest.into()),
            "tcp" => Self::Tcp { address: rest.to_owned(), tls },
            "docker-container" => program(&["docker"], flags(&["context"]), &["exec", "-i", host, "buildctl", "dial-stdio"]),
            "podman-container" => program(&["podman", "exec", "-i", host, "buildctl", "dial-stdio"], vec![], &[]),
            "nerdctl-container" => program(&["nerdctl"], flags(&["namespace"]), &["exec", "-i", host, "buildctl", "dial-stdio"]),
            "kube-pod" => {
                let mut head = flags(&["context", "namespace"]);
                head.extend(["exec".to_owned(), "-i".to_owned()]);
                head.extend(flags(&["container"]));
                program(&["kubectl"], head, &[host, "--", "buildctl", "dial-stdio"])
            }
            "ssh" => ssh(host).ok_or_else(|| malformed("a host cannot begin with a dash"))?,
            _ => return Err(ConnectError::Scheme { address: address.to_owned() }),
        })
    }

    /// Opens a connection; `limit` covers all of it.
    pub async fn connect(&self, limit: Duration) -> Result<Connection, ConnectError> {
        let timeout = || ConnectError::Timeout { address: self.to_string(), limit };
        tokio::time::timeout(limit, self.open()).await.map_err(|_| timeout())?
    }

    async fn open(&self) -> Result<Connection, ConnectError> {
        let failed = |source| ConnectError::Io { address: self.to_string(), source };
        let spoke = |source| ConnectError::Http { address: self.to_string(), source };
        match self {
            Self::Unix(path) => wire::connect(UnixStream::connect(path).await.map_err(failed)?).await.map_err(spoke),
            Self::Tcp { address, tls } => {
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let Some(tls) = tls else { return wire::connect(stream).await.map_err(spoke) };
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']);
                let name = if tls.server_name.is_empty() { host } else { &tls.server_name };
                let bad_name = |_| ConnectError::Tls { what: "the server name", problem: format!("{name:?} is no host name") };
                let name = ServerName::try_from(name.to_owned()).map_err(bad_name)?;
                let connector = tokio_rustls::TlsConnector::from(Arc::new(tls.config()?));
                wire::connect(connector.connect(name, stream).await.map_err(failed)?).await.map_err(spoke)
            }
            Self::Program(args) => {
                let mut command = tokio::process::Command::new(&args[0]);
                command.args(&args[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
                let mut child = command.spawn().map_err(failed)?;
                let input = child.stdin.take().expect("asked for a pipe");
                let output = child.stdout.take().expect("asked for a pipe");
                let connection = wire::connect(tokio::io::join(output, input)).await.map_err(spoke)?;
                let life = connection.life().clone();
                task::spawn("dial program", async move {
                    tokio::select! {
                        () = life.cancelled() => {}
                        _ = child.wait() => life.cancel("the program that held the connection has ended"),
                    }
                });
                Ok(connection)
            }
        }
    }
}

impl Tls {
    fn config(&self) -> Result<ClientConfig, ConnectError> {
        let bad = |what| move |e: rustls_pki_types::pem::Error| ConnectError::Tls { what, problem: e.to_string() };
        let refused = |what| move |e: rustls::Error| ConnectError::Tls { what, problem: e.to_string() };
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate.map_err(bad("the CA file"))?).map_err(refused("the CA file"))?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused("the protocol versions"))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(bad("the certificate file"))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(bad("the key file"))?;
                builder.with_client_auth_cert(chain, key).map_err(refused("the certificate and its key"))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// `[user@]host[:port][/socket]`
fn ssh(target: &str) -> Option<Endpoint> {
    let (host, socket) = target.split_once('/').map_or((target, None), |(host, socket)| (host, Some(socket)));
    let (host, port) = host.rsplit_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    if host.starts_with('-') {
        return None;
    }
    let mut args = vec!["ssh".to_owned()];
    args.extend(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_owned()]));
    args.extend(["--".to_owned(), host.to_owned(), "buildctl".to_owned()]);
    args.extend(socket.into_iter().flat_map(|path| ["--addr".to_owned(), format!("unix:///{path}")]));
    args.push("dial-stdio".to_owned());
    Some(Endpoint::Program(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(address: &str) -> String {
        Endpoint::parse(address, None).unwrap().to_string()
    }

    #[test]
    fn addresses() {
        assert_eq!(shown("unix:///run/b.sock"), "unix:///run/b.sock");
        assert_eq!(shown("tcp://h:1"), "tcp://h:1");
        assert_eq!(shown("docker-container://c?context=x"), "docker --context=x exec -i c buildctl dial-stdio");
        let pod = "kubectl --context=a --namespace=n exec -i --container=c p -- buildctl dial-stdio";
        assert_eq!(shown("kube-pod://p?context=a&namespace=n&container=c"), pod);
        assert_eq!(shown("ssh://me@h:22/run/b.sock"), "ssh -p 22 -- me@h buildctl --addr unix:///run/b.sock dial-stdio");
        let refused = |address| Endpoint::parse(address, None).unwrap_err().to_string();
        assert_eq!(refused("/run/x"), "address /run/x does not contain proto, you meant unix:///run/x ?");
        assert_eq!(refused("gopher://x"), "addr gopher://x not supported");
        assert!(Endpoint::parse("ssh://-oProxyCommand=x", None).is_err() && Endpoint::parse("unix://", None).is_err());
    }
}
