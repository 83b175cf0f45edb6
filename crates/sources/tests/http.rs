//! URLs as files, against a server that counts.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
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
    fn start<B: AsRef<[u8]>>(answer: impl Fn(&str, &str, &str) -> (String, B) + Send + 'static) -> Self {
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
                let body: &[u8] = if method == "HEAD" || head.starts_with("304") { b"" } else { body.as_ref() };
                let _ = write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(body);
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
    let first = context(&[]);
    let url = server.url("/dir/file.txt?x=1");
    let source = vertex(&url, &[("http.perm", "0755"), ("http.uid", "7")]);
    let key = place.key(&source, 0, &first).await.unwrap();
    assert_eq!(key.pin, Digest::of("body").to_string());
    let layer = place.fetch(&source, &first).await.unwrap().unwrap();
    assert_eq!(layer.description(), format!("http url {url}"));
    let (id, view) = (layer.id(), layer.view().unwrap());
    drop(layer);
    assert_eq!(read(&view, "file.txt"), "body");
    let entry = view.require("file.txt", Follow::No).unwrap();
    let metadata = entry.metadata();
    assert_eq!((metadata.mode & 0o7777, metadata.uid, metadata.gid, metadata.mtime.seconds), (0o755, 7, 0, 784_111_777));
    assert_eq!(server.methods(), ["GET"]);

    drop((view, first));
    let place = place.reopened().await;
    let second = context(&[]);
    assert_eq!(place.key(&source, 0, &second).await.unwrap(), key);
    assert_eq!(place.fetch(&source, &second).await.unwrap().unwrap().id(), id);
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

#[tokio::test]
async fn a_build_sees_one_version_of_a_url() {
    let count = std::sync::atomic::AtomicU32::new(0);
    let server = Server::start(move |_, _, _| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (format!("200 OK\r\nETag: \"v{n}\"\r\nLast-Modified: Sunday, 06-Nov-94 08:49:37 UTC"), format!("body {n}"))
    });
    let place = Place::new();
    let build = context(&[]);
    let source = vertex(&server.url("/f"), &[]);
    let meta = place.sources.http_meta(&op(&server.url("/f"), &[]), None, &build).await.unwrap();
    assert_eq!((meta.digest.clone(), meta.last_modified), (Digest::of("body 0"), Some(784_111_777)));
    // Neither a prune nor a new version on the server changes what the build goes on with.
    let rule = layers::Rule { all: true, ..layers::Rule::default() };
    place.layers.prune(&[rule], |_| true).unwrap();
    assert_eq!(place.key(&source, 0, &build).await.unwrap().pin, meta.digest.to_string());
    let layer = place.fetch(&source, &build).await.unwrap().unwrap();
    assert_eq!(read(&layer.view().unwrap(), "f"), "body 0");
    assert_eq!(server.methods(), ["GET"]);
    // The next build asks again.
    let next = context(&[]);
    assert_eq!(place.key(&source, 0, &next).await.unwrap().pin, Digest::of("body 2").to_string());
    assert_eq!(server.methods(), ["GET", "HEAD", "GET"]);
}

#[tokio::test]
async fn compression_of_the_way_is_undone() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&b"body ".repeat(10_000)).unwrap();
    let packed = packed.finish().unwrap();
    let cut = packed.len() / 2;
    let server = Server::start(move |_, path, headers| {
        assert!(headers.contains("accept-encoding: gzip") && headers.contains("user-agent: mine"), "{headers}");
        ("200 OK\r\nContent-Encoding: gzip".into(), if path == "/cut" { packed[..cut].to_vec() } else { packed.clone() })
    });
    let place = Place::new();
    let agent = [("http.header.user-agent", "mine")];
    let source = vertex(&server.url("/f"), &agent);
    let pin = place.key(&source, 0, &context(&[])).await.unwrap().pin;
    assert_eq!(pin, Digest::of(b"body ".repeat(10_000)).to_string());
    let cut = vertex(&server.url("/cut"), &agent);
    let error = place.key(&cut, 0, &context(&[])).await.unwrap_err().to_string();
    assert!(error.starts_with("invalid gzip body"), "{error}");
}

#[tokio::test]
async fn a_body_must_be_signed_where_that_is_asked_for() {
    let fixture =
        |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/signature/fixtures").join(name)).unwrap();
    let server = Server::start(|_, path, _| ("200 OK".into(), if path == "/good" { "hello\nworld\n" } else { "hello\nworld!\n" }));
    let (place, context) = (Place::new(), context(&[]));
    let (key, other, signature) = (fixture("ed.key"), fixture("rsa.key"), fixture("ed.sig"));
    // A checksum that is known beforehand does not stand for the signature.
    let sum = Digest::of("hello\nworld\n");
    for checksum in [None, Some(("http.checksum", sum.as_str()))] {
        let attrs: Vec<_> = [("http.sig.pubkey", key.as_str()), ("http.sig.signature", &signature)].into_iter().chain(checksum).collect();
        let good = vertex(&server.url("/good"), &attrs);
        assert_eq!(place.key(&good, 0, &context).await.unwrap().pin, sum.as_str());
        place.fetch(&good, &context).await.unwrap().unwrap();
        let attrs: Vec<_> = [("http.sig.pubkey", other.as_str()), ("http.sig.signature", &signature)].into_iter().chain(checksum).collect();
        let fault = place.key(&vertex(&server.url("/good"), &attrs), 0, &context).await.unwrap_err();
        assert!(fault.to_string().starts_with("failed to verify pgp signature: signature by "), "{fault}");
    }
    let bad = vertex(&server.url("/bad"), &[("http.sig.pubkey", &key), ("http.sig.signature", &signature)]);
    assert!(place.key(&bad, 0, &context).await.unwrap_err().to_string().ends_with("invalid signature: verification failure"));
    assert!(place.fetch(&bad, &context).await.is_err());
}
