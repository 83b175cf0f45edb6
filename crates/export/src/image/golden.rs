//! Tars that BuildKit v0.32.0 made, made again from their layers. `FROM scratch`, `COPY f /f`, `COPY f /dir/g`, with the attributes below.
use std::collections::BTreeMap;

use bytes::Bytes;
use oci::{Descriptor, Digest, Document, Index, Timestamp};
use progress::Reporter;
use serde_json::Value;
use testkit::{TarEntry, read_tar};

use crate::attestation::Written;
use crate::attrs::{Attrs, Epoch};
use crate::config::LayerFacts;
use crate::image::assemble::tests::store;
use crate::image::assemble::{Draft, Packed, Part, assemble};
use crate::image::layout;
use crate::image::options::ImageOptions;
use crate::upload::tests::Received;
use crate::upload::upload;

const EPOCH: (&str, &str) = ("source-date-epoch", "1000000000");
const CONFIG: &str = r#"{"architecture":"amd64","os":"linux", "config":{"Env":["A=x<y & z"]}, "zzz": {"n": 1.0, "a":"\u00e9 é"},"history":[{"created_by":"one"},{"created_by":"e","empty_layer":true}]}"#;

/// The blobs of a tar by digest.
struct Golden(BTreeMap<String, TarEntry>);

impl Golden {
    fn blob(&self, digest: &Digest) -> &[u8] {
        &self.0[&format!("blobs/sha256/{}", digest.hex())].data
    }

    fn root(&self) -> Document {
        let index: Index = serde_json::from_slice(&self.0["index.json"].data).unwrap();
        self.document(&index.manifests[0])
    }

    fn document(&self, descriptor: &Descriptor) -> Document {
        Document::parse(&descriptor.media_type, self.blob(&descriptor.digest)).unwrap()
    }

    /// The layers of an image, as they were before BuildKit wrote about them.
    fn part(&self, id: &str, manifest: &oci::Manifest) -> Part {
        let config: Value = serde_json::from_slice(self.blob(&manifest.config.digest)).unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        let pack = |(number, layer): (usize, &Descriptor)| Packed {
            descriptor: Descriptor { media_type: oci::media::OCI_LAYER_GZIP.into(), ..layer.clone() },
            facts: LayerFacts {
                diff_id: diff_ids[number].as_str().unwrap().parse().unwrap(),
                created: Some(Timestamp::from_unix(1_700_000_000, 5)),
                description: ["[1/2] COPY f /f", "[2/2] COPY f /dir/g"][number].into(),
            },
        };
        Part { id: id.into(), platform: id.parse().unwrap(), layers: manifest.layers.iter().enumerate().map(pack).collect() }
    }
}

async fn same(tar: &'static [u8], docker: bool, names: &str, attrs: &[(&str, &str)], draft: impl FnOnce(&Golden) -> Draft) {
    let golden = Golden(read_tar(tar));
    let draft = Draft { names: names.into(), ..draft(&golden) };
    let attrs = attrs.iter().chain([&EPOCH]).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = ImageOptions::take(&mut Attrs::new(&attrs), 30, false).unwrap();
    let settled = options.settle("oci", &draft.metadata, !draft.attestations.is_empty(), !docker).unwrap();
    assert_eq!(settled.epoch, Epoch::At(1_000_000_000));
    let (_dir, store) = store();
    for layer in draft.parts.iter().flat_map(|part| &part.layers) {
        let _hold = store.put(golden.blob(&layer.descriptor.digest)).unwrap();
    }
    let image = assemble(&draft, &settled, &store, &Reporter::silent()).unwrap();
    let mut root = image.root.descriptor.clone();
    root.annotations.insert("org.opencontainers.image.created".into(), "2001-09-09T01:46:40Z".into());
    let records = layout::records(&image, &root, &layout::normalized(names).unwrap(), docker);
    let received = Received::default();
    upload(Box::new(received.clone()), move |out| layout::write(&records, &store, out)).await.unwrap();
    let ours = received.0.lock().unwrap().0.clone();
    let texts = |entries: BTreeMap<String, TarEntry>| -> Vec<(String, String)> {
        entries.into_iter().map(|(name, entry)| (name, String::from_utf8_lossy(&entry.data).into_owned())).collect()
    };
    pretty(texts(read_tar(&ours)), texts(golden.0));
    assert!(ours == tar, "the headers differ");
}

/// Says which file differs before saying that any does.
fn pretty(ours: Vec<(String, String)>, theirs: Vec<(String, String)>) {
    for (name, text) in &theirs {
        let own = ours.iter().find(|(n, _)| n == name).map_or("(missing)", |(_, t)| t.as_str());
        if text.starts_with(['{', '[']) {
            assert_eq!(own, text, "{name}; we have {:?}", ours.iter().filter(|(_, t)| t.starts_with('{')).collect::<Vec<_>>());
        }
    }
}

fn single(golden: &Golden) -> Draft {
    let Document::Manifest(manifest) = golden.root() else { panic!("a manifest") };
    Draft {
        parts: vec![golden.part("linux/amd64", &manifest)],
        metadata: BTreeMap::from([("containerimage.config".to_owned(), Bytes::from_static(CONFIG.as_bytes()))]),
        ..Draft::default()
    }
}

#[tokio::test]
async fn oci_with_annotations_and_names() {
    let attrs = [("annotation.a", "1"), ("annotation-manifest-descriptor.b", "2")];
    same(include_bytes!("../../tests/golden/single.tar"), false, "x:1,r.io/a/b", &attrs, single).await;
}

#[tokio::test]
async fn docker_with_dockers_types() {
    same(include_bytes!("../../tests/golden/docker.tar"), true, "x:1,r.io/a/b", &[("oci-mediatypes", "false")], single).await;
}

#[tokio::test]
async fn oci_with_two_platforms_and_statements() {
    let attrs =
        [("annotation.a", "1"), ("annotation[linux/arm64].a", "2"), ("annotation-index.i", "3"), ("annotation-index-descriptor.d", "4")];
    let draft = |golden: &Golden| {
        let Document::Index(index) = golden.root() else { panic!("an index") };
        let mut draft = Draft { is_map: true, ..Draft::default() };
        for (number, id) in ["linux/amd64", "linux/arm64"].into_iter().enumerate() {
            let Document::Manifest(image) = golden.document(&index.manifests[number]) else { panic!("a manifest") };
            let Document::Manifest(attestation) = golden.document(&index.manifests[number + 2]) else { panic!("a manifest") };
            draft.parts.push(golden.part(id, &image));
            // What is patched already is left alone.
            let config = Bytes::copy_from_slice(golden.blob(&image.config.digest));
            draft.metadata.insert(format!("containerimage.config/{id}"), config);
            let statement: Value = serde_json::from_slice(golden.blob(&attestation.layers[0].digest)).unwrap();
            let statement = Written {
                predicate_type: statement["predicateType"].as_str().unwrap().into(),
                predicate: statement["predicate"].to_string().into(),
                path: "provenance.json".into(),
                inline_only: false,
                subjects: Vec::new(),
                sbom_core: None,
            };
            draft.attestations.insert(id.into(), vec![statement]);
        }
        draft
    };
    same(include_bytes!("../../tests/golden/multi.tar"), false, "r.io/x:1", &attrs, draft).await;
}
