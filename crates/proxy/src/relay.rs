//! Requests from the step to the world, and answers back.
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority as Place;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::Authority;
use crate::body::{Exchange, Watched};
use crate::captured::{self, Incomplete, Log, shown};
use crate::{Judge, Outlet};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Headers of one connection, which are not passed on to the next.
const OWN: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the connections of one step share.
pub(crate) struct Relay {
    pub authority: Arc<Authority>,
    pub tls: Arc<ClientConfig>,
    pub outlet: Arc<dyn Outlet>,
    pub judge: Arc<dyn Judge>,
    pub log: Log,
}

impl Relay {
    /// Serves a connection until its end, with what is tunnelled through it.
    pub async fn connection(self: Arc<Self>, connection: TcpStream) {
        let (tunnels, mut asked) = tokio::sync::mpsc::channel(1);
        let relay = self.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (relay, tunnels) = (relay.clone(), tunnels.clone());
            async move {
                if request.method() != Method::CONNECT {
                    return Ok::<_, Infallible>(relay.plain(request).await);
                }
                let Some(place) = request.uri().authority().cloned() else {
                    return Ok(told(StatusCode::BAD_REQUEST, "CONNECT names no host\n"));
                };
                let _ = tunnels.send((place, hyper::upgrade::on(request))).await;
                Ok(Response::new(nothing()))
            }
        });
        let served = server().serve_connection(TokioIo::new(connection), service).with_upgrades();
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection to the proxy broke");
        }
        if let Ok((place, upgrade)) = asked.try_recv()
            && let Err(error) = self.tunnel(place, upgrade).await
        {
            tracing::debug!(error, "a tunnel through the proxy broke");
        }
    }

    /// Stands in for the server that the step wants to talk to.
    async fn tunnel(self: Arc<Self>, place: Place, upgrade: hyper::upgrade::OnUpgrade) -> Result<(), Trouble> {
        let config = self.authority.server(host(&place))?;
        let stream = TlsAcceptor::from(config).accept(TokioIo::new(upgrade.await?)).await?;
        let service = service_fn(move |request: Request<Incoming>| {
            let (relay, place) = (self.clone(), place.clone());
            async move { Ok::<_, Infallible>(relay.forward("https", &place, request).await) }
        });
        server().serve_connection(TokioIo::new(stream), service).await?;
        Ok(())
    }

    /// A request with the whole URL in it, or one from a client that takes us for the server.
    async fn plain(&self, request: Request<Incoming>) -> Answer {
        let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse().ok());
        match request.uri().authority().cloned().or(named) {
            Some(place) => {
                let scheme = request.uri().scheme_str().unwrap_or("http").to_owned();
                self.forward(&scheme, &place, request).await
            }
            None => told(StatusCode::BAD_REQUEST, "the request names no host\n"),
        }
    }

    async fn forward(&self, scheme: &str, place: &Place, request: Request<Incoming>) -> Answer {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let wanted = format!("{scheme}://{place}{path}");
        let (method, url) = (request.method().clone(), shown(&wanted));
        let target = match self.judge.judge(&url).await {
            Ok(allowed) if allowed == url => wanted,
            // Only what is fetched can be fetched from elsewhere.
            Ok(other) if method == Method::GET => other,
            Ok(_) => return told(StatusCode::FORBIDDEN, "Forbidden\n"),
            Err(fault) => {
                tracing::debug!(%fault, url, "a request of a step was refused");
                return told(StatusCode::FORBIDDEN, "Forbidden\n");
            }
        };
        let url = shown(&target);
        let partial = request.headers().contains_key(header::RANGE);
        match self.fetch(&target, request).await {
            Ok(response) => self.pass(response, Exchange { method: method.to_string(), url, status: 0, partial }),
            Err(trouble) => {
                let mut words = trouble.to_string();
                let mut cause = trouble.source();
                while let Some(error) = cause {
                    words = format!("{words}: {error}");
                    cause = error.source();
                }
                self.log.write(|log| {
                    let method = method.to_string();
                    log.incomplete.push(Incomplete { method: method.clone(), url: url.clone(), reason: "upstream_error" });
                    log.requests.push(captured::Request { method, url, redirect: None, status: 502 });
                });
                told(StatusCode::BAD_GATEWAY, &format!("{words}\n"))
            }
        }
    }

    async fn fetch(&self, target: &str, mut request: Request<Incoming>) -> Result<Response<Incoming>, Trouble> {
        let target: Uri = target.parse()?;
        let place = target.authority().ok_or("the URL names no host")?;
        let secure = match target.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("only http and https can be fetched".into()),
        };
        let port = place.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = self.outlet.connect(host(place), port).await?;
        strip(request.headers_mut());
        request.headers_mut().remove(header::ACCEPT_ENCODING);
        let authority = place.as_str().rsplit('@').next().unwrap_or_default();
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority)?);
        *request.version_mut() = http::Version::HTTP_11;
        *request.uri_mut() = target.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        if secure {
            let name = ServerName::try_from(host(place).to_owned())?;
            let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
            return exchange(stream, request).await;
        }
        exchange(stream, request).await
    }

    fn pass(&self, response: Response<Incoming>, exchange: Exchange) -> Answer {
        let (mut parts, body) = response.into_parts();
        let exchange = Exchange { status: parts.status.as_u16(), ..exchange };
        let location = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let redirect = location.map(|location| shown(&resolve(&exchange.url, location)));
        self.log.write(|log| {
            let (method, url) = (exchange.method.clone(), exchange.url.clone());
            log.requests.push(captured::Request { method, url, redirect, status: exchange.status });
        });
        strip(&mut parts.headers);
        parts.version = http::Version::HTTP_11;
        Response::from_parts(parts, Watched::new(body, exchange, self.log.clone()).boxed())
    }
}

fn server() -> hyper::server::conn::http1::Builder {
    let mut server = hyper::server::conn::http1::Builder::new();
    // Some clients say that they are done as soon as they have asked.
    server.preserve_header_case(true).half_close(true);
    server
}

/// One request on a connection of its own.
async fn exchange<S>(stream: S, request: Request<Incoming>) -> Result<Response<Incoming>, Trouble>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream)).await?;
    // It ends with the sender and the body of the answer.
    task::spawn("proxied request", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of the proxy broke");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// An address without brackets, or a name.
fn host(place: &Place) -> &str {
    place.host().trim_start_matches('[').trim_end_matches(']')
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    OWN.iter().for_each(|name| drop(headers.remove(*name)));
    named.iter().for_each(|name| drop(headers.remove(name)));
}

/// A location as seen from a URL.
fn resolve(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("http", base));
    let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{place}{location}"),
        _ => {
            let path = rest[place.len()..].split(['?', '#']).next().unwrap_or_default();
            let dir = path.rfind('/').map_or("/", |at| &path[..=at]);
            format!("{scheme}://{place}{dir}{location}")
        }
    }
}

fn nothing() -> BoxBody<Bytes, hyper::Error> {
    Full::default().map_err(|never: Infallible| match never {}).boxed()
}

fn told(status: StatusCode, text: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_relative_to_where_they_stand() {
        let base = "https://a.example:8443/x/y?q";
        for (location, want) in [
            ("http://b/z", "http://b/z"),
            ("//b/z", "https://b/z"),
            ("/z?1", "https://a.example:8443/z?1"),
            ("z", "https://a.example:8443/x/z"),
        ] {
            assert_eq!(resolve(base, location), want);
        }
        assert_eq!(resolve("http://a", "z"), "http://a/z");
    }

    #[test]
    fn what_belongs_to_a_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "close, x-mine"), ("x-mine", "1"), ("te", "trailers"), ("accept", "*/*")] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
