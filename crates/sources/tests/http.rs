//! URLs as files, against a server that counts.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use oci::Digest;
use snapshot::Follow;
use support::{Client, Place, context, op, read, vertex};

/// Answers every request with what `answer` says of (method, path, headers): status line and headers, body.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<(String, String, String)>>>,
}

impl Server {
    fn start(answer: impl Fn(&str, &str, &str) -> (String, &'static str) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(request) = lines.next() else { continue };
                let headers: String = lines.take_while(|l| !l.is_empty()).map(|l| format!("{}\n", l.to_lowercase())).collect();
                let mut words = request.split(' ');
                let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
                let (head, body) = answer(&method, &path, &headers);
                log.lock().unwrap().push((method.clone(), path, headers));
                let body = if method == "HEAD" || head.starts_with("304") { "" } else { body };
                let _ = write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { address, seen }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn methods(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(method, _, _)| method.clone()).collect()
    }
}

#[tokio::test]
async fn downloads_once_and_asks_after_that() {
    let server = Server::start(|_, _, headers| match headers.contains("if-none-match: \"v1\"") {
        true => ("304 Not Modified\r\nETag: W/\"v1\"".into(), ""),
        false => ("200 OK\r\nETag: \"v1\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT".into(), "body"),
    });
    let place = Place::new();
    let context = context(&[]);
    let url = server.url("/dir/file.txt?x=1");
    let source = vertex(&url, &[("http.perm", "0755"), ("http.uid", "7")]);
    let key = place.key(&source, 0, &context).await.unwrap();
    assert_eq!(key.pin, Digest::of("body").to_string());
    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_eq!(layer.description(), format!("http url {url}"));
    let (id, view) = (layer.id(), layer.view().unwrap());
    drop(layer);
    assert_eq!(read(&view, "file.txt"), "body");
    let entry = view.require("file.txt", Follow::No).unwrap();
    let metadata = entry.metadata();
    assert_eq!((metadata.mode & 0o7777, metadata.uid, metadata.gid, metadata.mtime.seconds), (0o755, 7, 0, 784_111_777));
    assert_eq!(server.methods(), ["GET"]);

    let place = place.reopened().await;
    assert_eq!(place.key(&source, 0, &context).await.unwrap(), key);
    assert_eq!(place.fetch(&source, &context).await.unwrap().unwrap().id(), id);
    assert_eq!(server.methods(), ["GET", "HEAD"]);
}

#[tokio::test]
async fn a_checksum_needs_no_request_until_the_content_is_wanted() {
    let server = Server::start(|_, _, _| ("200 OK".into(), "body"));
    let place = Place::new();
    let context = context(&[]);
    let good = vertex(&server.url("/f"), &[("http.checksum", Digest::of("body").as_str())]);
    place.key(&good, 0, &context).await.unwrap();
    assert!(server.methods().is_empty());
    let layer = place.fetch(&good, &context).await.unwrap().unwrap();
    assert_eq!(read(&layer.view().unwrap(), "f"), "body");
    let wrong = Digest::of("other");
    let bad = vertex(&server.url("/f"), &[("http.checksum", wrong.as_str())]);
    let error = place.fetch(&bad, &context).await.unwrap_err().to_string();
    assert_eq!(error, format!("digest mismatch for {}: {} (expected: {wrong})", server.url("/f"), Digest::of("body")));
}

#[tokio::test]
async fn secrets_go_to_their_host_only() {
    let target = Server::start(|_, _, _| ("200 OK".into(), "moved here"));
    let location = target.url("/there");
    let server = Server::start(move |_, _, headers| match headers.contains("authorization: bearer t0ken") {
        true => (format!("302 Found\r\nLocation: {location}"), ""),
        false => ("401 Unauthorized".into(), ""),
    });
    let place = Place::new();
    let mut client = Client::new("s1");
    client.secrets.insert("HTTP_AUTH_TOKEN_127.0.0.1".into(), "t0ken".into());
    let source = vertex(&server.url("/f"), &[]);
    let layer = place.fetch(&source, &context(&[Arc::new(client)])).await.unwrap().unwrap();
    assert_eq!(read(&layer.view().unwrap(), "f"), "moved here");
    assert!(!target.seen.lock().unwrap()[0].2.contains("authorization"));
    let error = place.fetch(&source, &context(&[])).await.unwrap_err().to_string();
    assert_eq!(error, "invalid response status 401");
    let named = vertex(&server.url("/f"), &[("http.authheadersecret", "mine")]);
    let error = place.fetch(&named, &context(&[])).await.unwrap_err().to_string();
    assert_eq!(error, "failed to retrieve HTTP auth secret mine: secret mine: not found");
}

#[tokio::test]
async fn metadata_and_checksums_of_a_body_with_a_suffix() {
    let server = Server::start(|_, _, _| ("200 OK\r\nContent-Disposition: attachment; filename=\"n.txt\"".into(), "body"));
    let place = Place::new();
    let meta = place.sources.http_meta(&op(&server.url("/f"), &[]), Some(("sha256", b"+suffix")), &context(&[])).await.unwrap();
    assert_eq!(
        (meta.filename.as_str(), meta.digest, meta.checksum),
        ("n.txt", Digest::of("body"), Some(Digest::of("body+suffix").to_string()))
    );
}

#[tokio::test]
async fn clients_may_upload_what_they_have() {
    let place = Place::new();
    let mut client = Client::new("s1");
    client.uploads.insert("abc".into(), "from stdin".into());
    let source = vertex("http://buildkit-session/abc", &[("http.filename", "context")]);
    let context = context(&[Arc::new(client)]);
    let key = place.key(&source, 0, &context).await.unwrap();
    assert_eq!(key.pin, Digest::of("from stdin").to_string());
    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_eq!(read(&layer.view().unwrap(), "context"), "from stdin");
}
