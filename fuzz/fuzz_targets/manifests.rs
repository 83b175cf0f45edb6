//! What registries serve: manifests, indexes, image configs.
#![no_main]
use libfuzzer_sys::fuzz_target;
use oci::{Document, ImageConfig, Platform, gojson, media};

fuzz_target!(|data: &[u8]| {
    for media_type in ["", media::OCI_MANIFEST, media::OCI_INDEX] {
        match Document::parse(media_type, data) {
            Ok(Document::Manifest(manifest)) => {
                let bytes = manifest.to_bytes();
                assert_eq!(Document::parse(media_type, &bytes).expect("our own manifest"), Document::Manifest(manifest));
            }
            Ok(Document::Index(index)) => {
                let _ = index.matching(&Platform::host());
                let bytes = index.to_bytes();
                assert_eq!(Document::parse(media_type, &bytes).expect("our own index"), Document::Index(index));
            }
            Err(error) => drop(error.to_string()),
        }
    }
    if let Ok(config) = ImageConfig::parse(data) {
        let bytes = config.to_bytes();
        let again = ImageConfig::parse(&bytes).expect("our own config");
        assert_eq!(again.to_bytes(), bytes);
        let _ = config.platform();
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = gojson::indent(&gojson::compact(text));
    }
});
