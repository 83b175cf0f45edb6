//! What a step fetched.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci::Digest;

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub url: String,
    /// Where the answer sent the step.
    pub redirect: Option<String>,
    pub status: u16,
}

/// A body of which every byte went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    pub url: String,
    pub digest: Digest,
}

/// An exchange of which no digest can be told, and why, in BuildKit's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    pub method: String,
    pub url: String,
    pub reason: &'static str,
}

/// All that went through the proxy of one step, in order. URLs have no credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    pub requests: Vec<Request>,
    pub materials: Vec<Material>,
    pub incomplete: Vec<Incomplete>,
}

impl Captured {
    /// For the end of the step's log; empty if there was no request.
    pub fn summary(&self) -> String {
        let lines = self.requests.iter().map(|r| format!("- {} {} -> {}\n", r.method, r.url, r.status));
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("proxy network requests:\n{lines}") }
    }

    /// What led to a body by redirects is a name of it too.
    fn follow_redirects(&mut self) {
        let mut known: BTreeMap<String, Digest> = self.materials.iter().map(|m| (m.url.clone(), m.digest.clone())).collect();
        loop {
            let before = known.len();
            for request in &self.requests {
                let target = request.redirect.as_ref().and_then(|target| known.get(target)).cloned();
                if let (Some(digest), false) = (target, known.contains_key(&request.url)) {
                    self.materials.push(Material { url: request.url.clone(), digest: digest.clone() });
                    known.insert(request.url.clone(), digest);
                }
            }
            if known.len() == before {
                return;
            }
        }
    }
}

/// Where connections write down what they see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Captured>>);

impl Log {
    pub fn write(&self, entry: impl FnOnce(&mut Captured)) {
        entry(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn take(&self) -> Captured {
        let mut captured = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        captured.follow_redirects();
        captured
    }
}

/// A URL as it is shown: without credentials, and without a port that its scheme implies.
pub(crate) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let implied = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "\0",
    };
    let host = host.strip_suffix(implied).unwrap_or(host);
    let masked = match user.map(|user| user.split_once(':')) {
        None => "",
        Some(Some(_)) => "xxxxx:xxxxx@",
        Some(None) => "xxxxx@",
    };
    format!("{scheme}://{masked}{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_urls_keep_no_secrets() {
        for (url, want) in [
            ("https://a.example:443/x?y", "https://a.example/x?y"),
            ("http://a.example:80", "http://a.example"),
            ("http://a.example:443/", "http://a.example:443/"),
            ("https://me:secret@[::1]:443/", "https://xxxxx:xxxxx@[::1]/"),
            ("https://token@a.example/p@q", "https://xxxxx@a.example/p@q"),
        ] {
            assert_eq!(shown(url), want);
        }
    }

    #[test]
    fn redirects_name_what_they_lead_to() {
        let request = |url: &str, redirect: Option<&str>| Request {
            method: "GET".into(),
            url: url.into(),
            redirect: redirect.map(str::to_owned),
            status: if redirect.is_some() { 302 } else { 200 },
        };
        let log = Log::default();
        log.write(|c| {
            c.requests = vec![request("a", Some("b")), request("b", Some("c")), request("c", None), request("x", Some("nowhere"))];
            c.materials = vec![Material { url: "c".into(), digest: Digest::of("body") }];
        });
        let captured = log.take();
        let mut urls: Vec<&str> = captured.materials.iter().map(|m| m.url.as_str()).collect();
        urls.sort_unstable();
        assert_eq!(urls, ["a", "b", "c"]);
        assert_eq!(captured.summary(), "proxy network requests:\n- GET a -> 302\n- GET b -> 302\n- GET c -> 200\n- GET x -> 302\n");
        assert_eq!(Captured::default().summary(), "");
    }
}
