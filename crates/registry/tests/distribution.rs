//! A round trip through the distribution project's registry (Debian package `docker-registry`), which must be installed.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use oci::{Descriptor, Reference, media};
use registry::{Payload, Pushed};
use support::{client, noise, open, read};
use testkit::Registry;

#[tokio::test]
async fn pushes_mounts_and_pulls() {
    let server = tokio::task::spawn_blocking(Registry::start).await.unwrap();
    let reference: Reference = format!("{}/team/app:v1", server.host()).parse().unwrap();
    let client = client();
    let repository = open(&client, &reference);

    let data = noise(5 << 20);
    let mut layer = Descriptor::of(media::OCI_LAYER_GZIP, &data);
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &data).unwrap();
    let payload = Payload::File { file: Arc::new(file), offset: 0, size: layer.size };
    assert_eq!(repository.push_blob(&layer, payload, None).await.unwrap(), Pushed::Uploaded);
    let config = Descriptor::of(media::OCI_CONFIG, b"{}");
    assert_eq!(repository.push_blob(&config, Payload::Bytes("{}".into()), None).await.unwrap(), Pushed::Uploaded);
    let manifest = support::manifest(&config, std::slice::from_ref(&layer));
    let described = Descriptor::of(media::OCI_MANIFEST, &manifest);
    assert_eq!(repository.push_manifest(&described, manifest.clone(), Some("v1")).await.unwrap(), Pushed::Uploaded);

    assert_eq!(repository.resolve(&reference).await.unwrap(), described);
    assert_eq!(repository.manifest(&described).await.unwrap(), manifest);
    assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
    assert_eq!(read(&repository, &layer, 5_000_000).await.unwrap(), data[5_000_000..]);

    let other = open(&client, &format!("{}/team/other", server.host()).parse().unwrap());
    layer.annotations.insert(format!("{}localhost", registry::SOURCE_ANNOTATION), "team/app".into());
    let from = registry::mount_candidate(other.name(), &layer.annotations);
    assert_eq!(other.take(&layer, from).await.unwrap(), Some(Pushed::Mounted));
    assert_eq!(read(&other, &layer, 0).await.unwrap(), data);
    let missing: Reference = format!("{}/team/app:v2", server.host()).parse().unwrap();
    assert!(repository.resolve(&missing).await.unwrap_err().is_not_found());
}
