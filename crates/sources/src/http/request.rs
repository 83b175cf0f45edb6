use std::collections::BTreeMap;

use http::Uri;
use oci::{Digest, gojson};
use serde::Serialize;

use super::file::Placement;
use super::resolve::Resolved;
use crate::error::SourceError;
use crate::key::Key;
use crate::scheme::safe_file_name;
use registry::date;

/// An HTTP source op, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub url: String,
    pub checksum: Option<Digest>,
    pub placement: Placement,
    /// A secret that is the whole `Authorization` value.
    pub auth_header_secret: String,
    /// Sorted; only the two names that may be set.
    pub headers: Vec<Field>,
    pub signature: Option<Signature>,
}

/// What must be signed is the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// OpenPGP certificates, armored.
    pub keys: String,
    pub armored: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Field {
    pub name: String,
    pub value: String,
}

/// The key text, in the field order of BuildKit.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HttpKey<'a> {
    filename: &'a str,
    perm: i64,
    #[serde(rename = "UID")]
    uid: i64,
    #[serde(rename = "GID")]
    gid: i64,
    checksum: &'a Digest,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_mod_time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth_header_secret: &'a str,
    #[serde(skip_serializing_if = "<[Field]>::is_empty")]
    header: &'a [Field],
}

impl Request {
    pub fn new(url: &str, attrs: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let get = |key: &str| attrs.get(key).map_or("", String::as_str);
        let signature = match (get("http.sig.pubkey"), get("http.sig.signature")) {
            ("", "") => None,
            ("", _) | (_, "") => return Err(SourceError::Signature),
            (keys, armored) => Some(Signature { keys: keys.to_owned(), armored: armored.to_owned() }),
        };
        let checksum = match get("http.checksum") {
            "" => None,
            text => Some(text.parse().map_err(|_| SourceError::Attr { what: "http checksum", value: text.to_owned() })?),
        };
        let mut headers: Vec<Field> = [("http.header.accept", "Accept"), ("http.header.user-agent", "User-Agent")]
            .into_iter()
            .filter_map(|(key, name)| attrs.get(key).map(|value| Field { name: name.to_owned(), value: value.clone() }))
            .collect();
        headers.sort();
        Ok(Self {
            url: url.to_owned(),
            checksum,
            placement: Placement::new(attrs)?,
            auth_header_secret: get("http.authheadersecret").to_owned(),
            headers,
            signature,
        })
    }

    pub fn key(&self, resolved: &Resolved) -> Key {
        let Placement { perm, uid, gid, .. } = self.placement;
        let text = Digest::of(gojson::to_vec(&HttpKey {
            filename: &resolved.filename,
            perm,
            uid,
            gid,
            checksum: &resolved.digest,
            last_mod_time: resolved.modified.map(date::format).unwrap_or_default(),
            auth_header_secret: &self.auth_header_secret,
            header: &self.headers,
        }));
        Key::new(text.as_str(), resolved.digest.as_str(), false)
    }

    /// Under which the versions of this request's answers are remembered.
    pub fn memory(&self) -> String {
        let Placement { filename, perm, uid, gid } = &self.placement;
        let text = format!("{}\0{filename}\0{perm}\0{uid}\0{gid}\0{}\0{:?}", self.url, self.auth_header_secret, self.headers);
        Digest::of(text).hex().to_owned()
    }

    /// What the file is called: as the op says, as the server says, or as the URL ends.
    pub fn file_name(&self, disposition: Option<&str>) -> String {
        if !self.placement.filename.is_empty() {
            return safe_file_name(&self.placement.filename);
        }
        if let Some(name) = disposition.and_then(disposition_name).filter(|name| !name.is_empty() && !name.ends_with('/')) {
            return safe_file_name(&name);
        }
        let path = self.url.parse::<Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
        safe_file_name(&percent_decoded(&path))
    }

    /// The host by itself, without port.
    pub fn host(&self) -> String {
        self.url.parse::<Uri>().ok().and_then(|uri| uri.host().map(|h| h.trim_matches(['[', ']']).to_owned())).unwrap_or_default()
    }
}

/// The file name of a `Content-Disposition`; the extended form wins.
fn disposition_name(header: &str) -> Option<String> {
    let mut plain = None;
    for part in header.split(';').skip(1) {
        let (key, value) = part.split_once('=')?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                let (_, encoded) = value.trim_matches('"').split_once("''")?;
                return Some(percent_decoded(encoded));
            }
            "filename" => plain = Some(value.trim_matches('"').replace("\\\"", "\"").replace("\\\\", "\\")),
            _ => {}
        }
    }
    plain
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let byte = match (first, tail) {
            (b'%', [a, b, ..]) => std::str::from_utf8(&[*a, *b]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, pairs: &[(&str, &str)]) -> Result<Request, SourceError> {
        Request::new(url, &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn names_files() {
        let plain = request("https://h/a/b%20c.tgz?x=/y", &[]).unwrap();
        assert_eq!(plain.file_name(None), "b c.tgz");
        assert_eq!(plain.file_name(Some("attachment; filename=\"../x.txt\"")), "x.txt");
        assert_eq!(plain.file_name(Some("attachment; filename=x; filename*=UTF-8''%c3%a9")), "é");
        assert_eq!(plain.file_name(Some("inline")), "b c.tgz");
        assert_eq!(request("https://h", &[]).unwrap().file_name(None), "download");
        assert_eq!(request("https://h/x", &[("http.filename", "n")]).unwrap().file_name(Some("a; filename=y")), "n");
    }

    #[test]
    fn keys_are_upstreams_json() {
        let request =
            request("https://h/x", &[("http.perm", "0644"), ("http.uid", "3"), ("http.header.accept", "a"), ("http.header.cookie", "no")])
                .unwrap();
        let digest = Digest::of(b"body");
        let resolved = Resolved { layer: None, digest: digest.clone(), filename: "x".into(), modified: Some(784_111_777) };
        let json = format!(
            r#"{{"Filename":"x","Perm":420,"UID":3,"GID":0,"Checksum":"{digest}","LastModTime":"Sun, 06 Nov 1994 08:49:37 GMT","Header":[{{"Name":"Accept","Value":"a"}}]}}"#
        );
        assert_eq!(request.key(&resolved), Key::new(Digest::of(json).as_str(), digest.as_str(), false));
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        assert!(request("https://h", &[("http.sig.pubkey", "k")]).unwrap_err().to_string().contains("requires both"));
        assert!(request("https://h", &[("http.checksum", "md5:1")]).is_err());
        assert!(request("https://h", &[("http.perm", "rw")]).is_err());
    }
}
