//! Strict stand-ins for object stores: a request that the real service would refuse is refused, and remembered.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub struct Request {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

/// Serves until the test process ends. Returns `http://127.0.0.1:port`.
pub fn serve(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let handler = Arc::new(handler);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handler = handler.clone();
            std::thread::spawn(move || while answer(&stream, &*handler).is_some() {});
        }
    });
    address
}

fn answer(stream: &TcpStream, handler: &dyn Fn(&Request) -> Response) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter(|q| !q.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unescape(key), unescape(value))
    });
    let request = Request { path: unescape(path), query: query.collect(), method, headers, body };
    let response = handler(&request);
    let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", response.status, response.body.len());
    response.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    let body = if request.method == "HEAD" { &[][..] } else { &response.body };
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).ok()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// Objects by name, and what was asked.
#[derive(Clone, Default)]
pub struct Objects(pub Arc<Mutex<State>>);

#[derive(Default)]
pub struct State {
    pub stored: BTreeMap<String, Vec<u8>>,
    /// `METHOD path`
    pub asked: Vec<String>,
    pub refused: Vec<String>,
    /// Begun and not committed.
    pub reserved: BTreeMap<String, Vec<u8>>,
}

impl Objects {
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().stored.keys().cloned().collect()
    }

    pub fn remove(&self, part: &str) {
        self.0.lock().unwrap().stored.retain(|name, _| !name.contains(part));
    }

    /// How many requests of this method there were since the last call.
    pub fn count(&self, method: &str) -> usize {
        let mut state = self.0.lock().unwrap();
        assert!(state.refused.is_empty(), "{:?}", state.refused);
        std::mem::take(&mut state.asked).iter().filter(|a| a.starts_with(method)).count()
    }
}

fn ranged(data: &[u8], range: Option<&String>) -> Response {
    match range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()) {
        Some(offset) => Response::new(206, &data[offset..]),
        None => Response::new(200, data),
    }
}

/// S3 with the bucket in the path. Bodies must have the digest that was signed.
pub fn s3(objects: Objects) -> String {
    serve(move |request| {
        let mut state = objects.0.lock().unwrap();
        state.asked.push(format!("{} {}", request.method, request.path));
        let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
        let signed = header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=key/")
            && header("authorization").contains("SignedHeaders=host;")
            && header("x-amz-content-sha256") == oci::Digest::of(&request.body).hex();
        if !signed {
            state.refused.push(format!("{} {}", request.method, request.path));
            return Response::new(403, "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>");
        }
        let name = request.path.clone();
        match request.method.as_str() {
            "PUT" => {
                state.stored.insert(name, request.body.clone());
                Response::new(200, "")
            }
            _ => match state.stored.get(&name) {
                Some(data) => {
                    let mut response = ranged(data, request.headers.get("range"));
                    response.headers.push(("last-modified", registry::date::format(4_000_000_000)));
                    response
                }
                None => Response::new(404, "<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>"),
            },
        }
    })
}

/// The cache service of GitHub Actions with signed addresses; `old` for the protocol before that.
pub fn github(objects: Objects, token: String, old: bool) -> String {
    let own = Arc::new(Mutex::new(String::new()));
    let address = own.clone();
    let url = serve(move |request| {
        let mut state = objects.0.lock().unwrap();
        state.asked.push(format!("{} {}", request.method, request.path));
        let base = address.lock().unwrap().clone();
        let bearer = request.headers.get("authorization").map_or("", String::as_str);
        let place = request.path.rsplit('/').next().unwrap().to_owned();
        if request.path.starts_with("/signed/") {
            let is_block = request.headers.get("x-ms-blob-type").is_some_and(|t| t == "BlockBlob");
            if !bearer.is_empty() || request.query.get("sig").is_none_or(|s| s != "s1") {
                state.refused.push(request.path.clone());
                return Response::new(403, "");
            }
            return match request.method.as_str() {
                "PUT" if is_block => {
                    state.reserved.insert(place, request.body.clone());
                    Response::new(201, "")
                }
                "GET" => match state.stored.get(&place) {
                    Some(data) => ranged(data, request.headers.get("x-ms-range").or(request.headers.get("range"))),
                    None => Response::new(404, ""),
                },
                _ => Response::new(400, ""),
            };
        }
        if bearer != format!("Bearer {token}") {
            state.refused.push(request.path.clone());
            return Response::new(401, "");
        }
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let version = body["version"].as_str().or(request.query.get("version").map(String::as_str));
        let names_version = version == Some(oci::Digest::of("|go-actionscache-1.0").hex());
        let key = body["key"].as_str().unwrap_or_default().to_owned();
        let find = |state: &State, key: &str| match state.stored.contains_key(key) {
            true => Some(key.to_owned()),
            // The newest of those that begin so.
            false => state.stored.keys().rfind(|k| k.starts_with(key)).cloned(),
        };
        let is_taken = state.stored.contains_key(&key) || state.reserved.contains_key(&key);
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/twirp/github.actions.results.api.v1.CacheService/GetCacheEntryDownloadURL") if !old && names_version => {
                match find(&state, &key) {
                    Some(found) => Response::new(
                        200,
                        format!(r#"{{"ok":true,"signed_download_url":"{base}/signed/{found}?sig=s1","matched_key":"{found}"}}"#)
                            .replace('#', "%23")
                            .replace(
                                &format!("\"matched_key\":\"{}\"", found.replace('#', "%23")),
                                &format!("\"matched_key\":\"{found}\""),
                            ),
                    ),
                    None => Response::new(200, r#"{"ok":false}"#),
                }
            }
            ("POST", "/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry") if !old && names_version => {
                if is_taken {
                    return Response::new(409, r#"{"code":"already_exists","msg":"cache entry with the same key"}"#);
                }
                state.reserved.insert(key.clone(), Vec::new());
                let place = key.replace('#', "%23");
                Response::new(200, format!(r#"{{"ok":true,"signed_upload_url":"{base}/signed/{place}?sig=s1"}}"#))
            }
            ("POST", "/twirp/github.actions.results.api.v1.CacheService/FinalizeCacheEntryUpload") if !old && names_version => {
                let data = state.reserved.remove(&key).unwrap_or_default();
                let is_whole = body["size_bytes"].as_u64() == Some(data.len() as u64);
                state.stored.insert(key, data);
                Response::new(200, format!(r#"{{"ok":{is_whole},"entry_id":"1"}}"#))
            }
            ("GET", "/_apis/artifactcache/cache") if old && names_version => match find(&state, &request.query["keys"]) {
                Some(found) => {
                    let place = found.replace('#', "%23");
                    Response::new(200, format!(r#"{{"cacheKey":"{found}","archiveLocation":"{base}/signed/{place}?sig=s1"}}"#))
                }
                None => Response::new(204, ""),
            },
            ("POST", "/_apis/artifactcache/caches") if old && names_version => {
                if is_taken {
                    return Response::new(409, r#"{"typeKey":"ArtifactCacheItemAlreadyExistsException","message":"taken"}"#);
                }
                state.reserved.insert(key, Vec::new());
                let id = state.reserved.len();
                // Names are found again by the number of reservations, which this test makes one after the other or commits in order.
                let name = body["key"].as_str().unwrap().to_owned();
                state.reserved.insert(format!("id {id}"), name.into_bytes());
                Response::new(200, format!(r#"{{"cacheId":{id}}}"#))
            }
            ("PATCH", _) if old => {
                let name = String::from_utf8(state.reserved[&format!("id {place}")].clone()).unwrap();
                let range = format!("bytes 0-{}/*", request.body.len() - 1);
                assert_eq!(request.headers["content-range"], range);
                state.reserved.insert(name, request.body.clone());
                Response::new(204, "")
            }
            ("POST", _) if old && request.path.starts_with("/_apis/artifactcache/caches/") => {
                let name = String::from_utf8(state.reserved[&format!("id {place}")].clone()).unwrap();
                let data = state.reserved[&name].clone();
                assert_eq!(body["size"].as_u64(), Some(data.len() as u64));
                state.stored.insert(name, data);
                Response::new(204, "")
            }
            _ => {
                state.refused.push(format!("{} {}", request.method, request.path));
                Response::new(400, "")
            }
        }
    });
    own.lock().unwrap().push_str(&url);
    url
}
