use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use oci::Digest;
use tempfile::TempDir;

use crate::{BaseImage, PATIENCE, Reply, http, wait_until};

/// Debian's docker-registry on a loopback port, with storage of its own.
pub struct Registry {
    child: Child,
    port: u16,
    _root: TempDir,
}

impl Registry {
    /// # Panics
    /// If `docker-registry` (Debian package of that name) is not installed or does not come up.
    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (config, log) = (root.path().join("config.yml"), root.path().join("log"));
        // It picks its port itself and says which: one that was picked for it could be somebody else's by the time.
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
            root.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("docker-registry (Debian package docker-registry) is installed");
        let mut registry = Self { child, port: 0, _root: root };
        registry.port = wait_until("the registry's port", PATIENCE, || {
            let said = fs::read_to_string(&log).unwrap();
            let ended = registry.child.try_wait().unwrap();
            assert!(ended.is_none(), "the registry ended with {ended:?}:\n{said}");
            port_in(&said)
        });
        wait_until("the registry", PATIENCE, || http("GET", &registry.host(), "/v2/", &[], b"").ok());
        registry
    }

    /// `localhost:port`, which every client takes for plain HTTP.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub fn get(&self, path: &str) -> Reply {
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
             application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
        http("GET", &self.host(), path, &[("Accept", accept)], b"").unwrap()
    }

    pub fn manifest(&self, repository: &str, reference: &str) -> serde_json::Value {
        let reply = self.get(&format!("/v2/{repository}/manifests/{reference}"));
        assert_eq!(reply.status, 200, "{repository}:{reference}: {}", String::from_utf8_lossy(&reply.body));
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let reply = self.get(&format!("/v2/{repository}/blobs/{digest}"));
        assert_eq!(reply.status, 200, "{repository} {digest}");
        assert_eq!(Digest::of(&reply.body).to_string(), digest, "the registry's blob is what it is called");
        reply.body
    }

    /// Stores an image under `repository:tag`.
    pub fn push(&self, repository: &str, tag: &str, image: &BaseImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, "application/vnd.oci.image.manifest.v1+json", &image.manifest);
    }

    /// Stores a manifest or an index whose parts are there, under a tag or its digest.
    pub fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let reply = http("PUT", &self.host(), &path, &[("Content-Type", media_type)], bytes).unwrap();
        assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
    }

    pub fn push_blob(&self, repository: &str, blob: &[u8]) {
        let begun = http("POST", &self.host(), &format!("/v2/{repository}/blobs/uploads/"), &[], b"").unwrap();
        let location = &begun.headers["location"];
        let path = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
        let path = format!("{path}&digest={}", Digest::of(blob));
        let reply = http("PUT", &self.host(), &path, &[("Content-Type", "application/octet-stream")], blob).unwrap();
        assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Once what is said of it is complete.
fn port_in(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once("listening on 127.0.0.1:")?;
    rest[..rest.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::port_in;

    #[test]
    fn a_port_that_is_half_said_is_none() {
        let whole = "level=info msg=\"listening on 127.0.0.1:36119\" version=2";
        assert_eq!(port_in(whole), Some(36119));
        for end in 0..whole.find('"').unwrap() + 30 {
            assert_eq!(port_in(&whole[..end]), None, "{:?}", &whole[..end]);
        }
    }
}
