//! An image as the OCI layout in a tar that `oci` and `docker` exports are.
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use bytes::Bytes;
use content::Store;
use fault::{Fault, Result};
use oci::{Annotations, Descriptor, Digest, Index, Reference, gojson, media};

use crate::image::assemble::Image;
use crate::tar::{Header, Kind, TRAILER, padding};
use crate::upload::Chunks;

const IMAGE_NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

/// Files of the layout by path, which is their order in the tar.
pub type Records = BTreeMap<String, Record>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Directory,
    Text { mode: u32, bytes: Bytes },
    Blob { digest: Digest, size: u64 },
}

/// `root` is the image's descriptor as the index shall have it, but for the names; `docker` adds what `docker load` of old versions reads.
pub fn records(image: &Image, root: &Descriptor, names: &[Reference], docker: bool) -> Records {
    let mut records = Records::new();
    let text = |mode, bytes: Vec<u8>| Record::Text { mode, bytes: bytes.into() };
    records.insert("oci-layout".into(), text(0o444, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    records.insert("index.json".into(), text(0o644, index(root, names)));
    if docker && image.children.is_empty() {
        records.insert("manifest.json".into(), text(0o644, docker_manifest(image, names)));
    }
    let mut algorithms = BTreeSet::new();
    for document in image.documents() {
        for blob in document.blobs.iter().chain([&document.descriptor]) {
            algorithms.insert(blob.digest.algorithm().to_owned());
            records.insert(blob_path(&blob.digest), Record::Blob { digest: blob.digest.clone(), size: blob.size });
        }
    }
    records.insert("blobs/".into(), Record::Directory);
    records.extend(algorithms.iter().map(|algorithm| (format!("blobs/{algorithm}/"), Record::Directory)));
    records
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// The root once for each name.
fn index(root: &Descriptor, names: &[Reference]) -> Vec<u8> {
    let named = |name: &Reference| {
        let mut descriptor = root.clone();
        descriptor.annotations.insert(IMAGE_NAME.into(), name.to_string());
        descriptor.annotations.insert(REFERENCE_NAME.into(), reference_name(name));
        descriptor
    };
    let manifests = if names.is_empty() { vec![root.clone()] } else { names.iter().map(named).collect() };
    gojson::to_vec(&Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.into(),
        artifact_type: String::new(),
        manifests,
        subject: None,
        annotations: Annotations::new(),
    })
}

/// What a reference has behind its name, if that begins with a tag; else all of it.
fn reference_name(name: &Reference) -> String {
    match (name.tag(), name.digest()) {
        (Some(tag), Some(digest)) => format!("{tag}@{digest}"),
        (Some(tag), None) => tag.to_owned(),
        _ => name.to_string(),
    }
}

fn docker_manifest(image: &Image, names: &[Reference]) -> Vec<u8> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    let filled = |items: Vec<String>| (!items.is_empty()).then_some(items);
    let mut blobs = image.root.blobs.iter().map(|blob| blob_path(&blob.digest));
    let config = blobs.next().unwrap_or_default();
    let repo_tags = filled(names.iter().map(|name| name.clone().or_latest().familiar()).collect());
    gojson::to_vec(&[Entry { config, repo_tags, layers: filled(blobs.collect()) }])
}

/// Full names with tags, of a comma-separated list.
pub fn normalized(names: &str) -> Result<Vec<Reference>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let parse = |name: &str| {
        name.parse::<Reference>().map(Reference::or_latest).map_err(|e| Fault::invalid(format!("failed to parse {name}: {e}")))
    };
    names.split(',').map(parse).collect()
}

/// Writes the tar. Every blob must be in the store. Blocking.
pub fn write(records: &Records, store: &Store, out: &mut Chunks) -> Result<()> {
    for (path, record) in records {
        match record {
            Record::Directory => out.write_all(&Header::new(path.as_str(), Kind::Directory, 0o755).encode())?,
            Record::Text { mode, bytes } => {
                out.write_all(&Header::file(path.as_str(), *mode, bytes.len() as u64).encode())?;
                out.write_all(bytes)?;
                pad(out, bytes.len() as u64)?;
            }
            Record::Blob { digest, size } => {
                let mut blob = store.open_blob(digest)?;
                out.write_all(&Header::file(path.as_str(), 0o444, *size).encode())?;
                if blob.size() != *size {
                    return Err(Fault::internal(format!("blob {digest} has {} bytes and not {size}", blob.size())));
                }
                out.copy(&mut blob, *size, digest)?;
                pad(out, *size)?;
            }
        }
    }
    Ok(out.write_all(&TRAILER)?)
}

fn pad(out: &mut Chunks, size: u64) -> Result<()> {
    Ok(out.write_all(&[0; 512][..padding(size)])?)
}

#[cfg(test)]
mod tests {
    use progress::Reporter;
    use testkit::read_tar;

    use super::*;
    use crate::image::assemble::assemble;
    use crate::image::assemble::tests::{draft, options, store};
    use crate::upload::tests::Received;
    use crate::upload::upload;

    async fn tarred(names: &str, docker: bool) -> (Image, Vec<u8>) {
        let (_dir, store) = store();
        let draft = draft(&store, &["linux/amd64"]);
        let image = assemble(&draft, &options(&[], &draft).unwrap(), &store, &Reporter::silent()).unwrap();
        let records = records(&image, &image.root.descriptor, &normalized(names).unwrap(), docker);
        let received = Received::default();
        upload(Box::new(received.clone()), move |out| write(&records, &store, out)).await.unwrap();
        let bytes = received.0.lock().unwrap().0.clone();
        (image, bytes)
    }

    /// Names as they lie in the tar.
    fn order(mut tar: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while tar[0] != 0 {
            let field = |from: usize, to: usize| String::from_utf8_lossy(&tar[from..to]).trim_end_matches('\0').to_owned();
            names.push(field(0, 100));
            let size = usize::from_str_radix(&field(124, 136), 8).unwrap();
            tar = &tar[512 + size.next_multiple_of(512)..];
        }
        assert_eq!(tar, TRAILER);
        names
    }

    #[tokio::test]
    async fn a_layout_names_every_blob() {
        let (image, tar) = tarred("x,r.io/y:2", false).await;
        let root = &image.root.descriptor;
        let mut blobs: Vec<String> = image.root.blobs.iter().chain([root]).map(|b| format!("blobs/sha256/{}", b.digest.hex())).collect();
        blobs.sort();
        let want =
            [vec!["blobs/".to_owned(), "blobs/sha256/".into()], blobs.clone(), vec!["index.json".into(), "oci-layout".into()]].concat();
        assert_eq!(order(&tar), want);
        let entries = read_tar(&tar);
        for blob in &blobs {
            assert_eq!(Digest::of(&entries[blob].data).hex(), &blob[13..]);
            assert_eq!((entries[blob].kind, entries[blob].mode), (b'0', 0o444));
        }
        assert_eq!((entries["blobs"].mode, entries["index.json"].mode, entries["oci-layout"].mode), (0o755, 0o644, 0o444));
        assert_eq!(entries["oci-layout"].data, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let entry = |name: &str, tag: &str| {
            format!(
                concat!(
                    r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"#,
                    r#""annotations":{{"io.containerd.image.name":"{}","org.opencontainers.image.ref.name":"{}"}},"#,
                    r#""platform":{{"architecture":"amd64","os":"linux"}}}}"#
                ),
                root.digest, root.size, name, tag
            )
        };
        let want = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{},{}]}}"#,
            entry("docker.io/library/x:latest", "latest"),
            entry("r.io/y:2", "2")
        );
        assert_eq!(String::from_utf8_lossy(&entries["index.json"].data), want);
    }

    #[tokio::test]
    async fn docker_gets_its_own_manifest_too() {
        let (image, tar) = tarred("x", true).await;
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let blobs = &image.root.blobs;
        let want = format!(
            r#"[{{"Config":"{}","RepoTags":["x:latest"],"Layers":["{}","{}"]}}]"#,
            path(&blobs[0].digest),
            path(&blobs[1].digest),
            path(&blobs[2].digest)
        );
        assert_eq!(String::from_utf8_lossy(&read_tar(&tar)["manifest.json"].data), want);
        let (_, tar) = tarred("", true).await;
        assert!(String::from_utf8_lossy(&read_tar(&tar)["manifest.json"].data).contains(r#""RepoTags":null"#));
    }

    #[test]
    fn bad_names_are_named() {
        assert_eq!(
            normalized("a,B").unwrap_err().to_string(),
            "failed to parse B: invalid reference format: repository name (library/B) must be lowercase"
        );
        let digest = Digest::of("x");
        assert_eq!(reference_name(&format!("r.io/a@{digest}").parse().unwrap()), format!("r.io/a@{digest}"));
    }
}
