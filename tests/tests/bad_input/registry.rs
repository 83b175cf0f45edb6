//! A registry that answers what a test tells it to.
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use oci::Digest;
use testkit::BaseImage;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub media_type: String,
    pub body: Vec<u8>,
    /// What `Docker-Content-Digest` says; nothing if empty.
    pub digest: String,
}

impl Answer {
    pub fn new(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, media_type: media_type.into(), body: body.into(), digest: String::new() }
    }
}

/// Serves until the test ends. Paths are those below `/v2/`; what is not scripted is a 404.
pub struct Scripted {
    port: u16,
}

impl Scripted {
    pub fn start(answers: BTreeMap<String, Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(answers);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answers = answers.clone();
                std::thread::spawn(move || stream.and_then(|stream| serve(stream, &answers)));
            }
        });
        Self { port }
    }

    /// Serves `image` as `bad:latest`, changed by `change`.
    pub fn of(image: &BaseImage, change: impl FnOnce(&mut BTreeMap<String, Answer>)) -> Self {
        let mut answers = BTreeMap::new();
        for blob in image.layers.iter().chain([&image.config]) {
            answers.insert(blob_path(blob), Answer::new(200, "application/octet-stream", blob.clone()));
        }
        let digest = Digest::of(&image.manifest).to_string();
        let manifest = Answer { digest: digest.clone(), ..Answer::new(200, MANIFEST, image.manifest.clone()) };
        answers.insert(format!("bad/manifests/{digest}"), manifest.clone());
        answers.insert("bad/manifests/latest".into(), manifest);
        change(&mut answers);
        Self::start(answers)
    }

    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

pub fn blob_path(blob: &[u8]) -> String {
    format!("bad/blobs/{}", Digest::of(blob))
}

fn serve(stream: TcpStream, answers: &BTreeMap<String, Answer>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        while reader.read_line(&mut line)? > 2 {}
        let path = path.strip_prefix("/v2/").unwrap_or(&path);
        let found = match path {
            "" => Answer::new(200, "application/json", "{}"),
            _ => answers.get(path).cloned().unwrap_or(Answer::new(404, "text/plain", "nothing here")),
        };
        let mut head = format!("HTTP/1.1 {} Scripted\r\nContent-Type: {}\r\n", found.status, found.media_type);
        if !found.digest.is_empty() {
            head.push_str(&format!("Docker-Content-Digest: {}\r\n", found.digest));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", found.body.len()));
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            stream.write_all(&found.body)?;
        }
    }
}
