//! Blobs with a table of contents.
#![allow(clippy::unwrap_used)]
mod common;

use std::io::Read as _;

use common::{Archive, Home, pull};
use layers::{Compression, CompressionKind, Layer, LayerBlob, Layers};
use oci::Digest;
use progress::Reporter;
use serde_json::{Value, json};
use task::Cancel;

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
const MIB: usize = 1 << 20;

async fn blob(layer: &Layer, kind: CompressionKind, force: bool) -> LayerBlob {
    let compression = Compression { kind, level: None, force };
    layer.blobs(compression, &Cancel::new(), &Reporter::silent()).await.unwrap().pop().unwrap()
}

fn gunzip(data: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(data).read_to_end(&mut plain).unwrap();
    plain
}

/// One small file, one of three chunks that does not end on their border, one that does.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let noise = |length: usize| (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect::<Vec<u8>>();
    vec![("small", b"small".to_vec()), ("d/large", noise(9 * MIB + 7)), ("d/even", noise(4 * MIB)), ("empty", Vec::new())]
}

fn layer(layers: &Layers) -> Layer {
    let draft = layers.draft(None, layers::Properties::new("files")).unwrap();
    let root = draft.own_files();
    std::fs::create_dir(root.join("d")).unwrap();
    for (name, data) in files() {
        std::fs::write(root.join(name), data).unwrap();
    }
    std::os::unix::fs::symlink("small", root.join("link")).unwrap();
    draft.commit().unwrap()
}

/// Reads a blob as stargz-snapshotter does: the footer, the table, then single pieces.
fn check(bytes: &[u8], annotations: &oci::Annotations) -> Value {
    let footer = &bytes[bytes.len() - 51..];
    assert_eq!((&footer[..4], &footer[10..16]), (&[0x1f, 0x8b, 8, 4][..], &[26, 0, b'S', b'G', 22, 0][..]));
    assert_eq!(&footer[32..38], b"STARGZ");
    assert_eq!(gunzip(footer), b"");
    let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let archive = gunzip(&bytes[at..bytes.len() - 51]);
    assert_eq!(&archive[..18], b"stargz.index.json\0");
    let size = usize::from_str_radix(std::str::from_utf8(&archive[124..135]).unwrap(), 8).unwrap();
    let json = &archive[512..512 + size];
    assert_eq!(annotations[TOC_DIGEST], Digest::of(json).to_string());
    assert_eq!(annotations[UNCOMPRESSED_SIZE], gunzip(bytes).len().to_string());
    let toc: Value = serde_json::from_slice(json).unwrap();
    for (name, data) in files() {
        let pieces: Vec<&Value> = toc["entries"].as_array().unwrap().iter().filter(|e| e["name"] == name).collect();
        assert_eq!((&pieces[0]["type"], pieces[0]["digest"].as_str().unwrap()), (&json!("reg"), Digest::of(&data).as_str()), "{name}");
        assert_eq!(pieces[0]["size"].as_u64().unwrap_or(0), data.len() as u64, "{name}");
        assert_eq!(pieces.len(), data.len().div_ceil(4 * MIB).max(1), "{name}");
        for (number, piece) in pieces.iter().enumerate().filter(|_| !data.is_empty()) {
            let start = number * 4 * MIB;
            let want = &data[start..data.len().min(start + 4 * MIB)];
            assert_eq!(piece["chunkOffset"].as_u64().unwrap_or(0), start as u64, "{name}");
            assert_eq!(piece["chunkDigest"], Digest::of(want).as_str(), "{name}");
            let mut member = vec![0; want.len()];
            let offset = piece["offset"].as_u64().unwrap() as usize;
            flate2::read::GzDecoder::new(&bytes[offset..]).read_exact(&mut member).unwrap();
            assert!(member == want, "{name} at {start}");
        }
    }
    toc
}

#[tokio::test(flavor = "multi_thread")]
async fn every_piece_of_a_file_can_be_found_by_the_table() {
    let (home, other) = (Home::new(), Home::new());
    let layers = home.open();
    let layer = layer(&layers);
    let made = blob(&layer, CompressionKind::Estargz, false).await;
    let bytes = layers.content().read(&made.descriptor.digest).unwrap();
    let toc = check(&bytes, &made.descriptor.annotations);
    let kinds: Vec<(&str, &str)> =
        toc["entries"].as_array().unwrap().iter().map(|e| (e["name"].as_str().unwrap(), e["type"].as_str().unwrap())).collect();
    let large = [("d/large", "reg"), ("d/large", "chunk"), ("d/large", "chunk")];
    assert_eq!(
        kinds,
        [&[("d/", "dir"), ("d/even", "reg")], &large[..], &[("empty", "reg"), ("link", "symlink"), ("small", "reg")]].concat()
    );
    assert_eq!(made.descriptor.media_type, oci::media::OCI_LAYER_GZIP);
    assert_eq!(made.diff_id, Digest::of(gunzip(&bytes)), "with the table");

    // Compressed once: there is no other blob yet. The layer's own archive has its digest nevertheless.
    assert_eq!(layer.known_blobs().len(), 1);

    // The layer itself stays what it is, and whatever else is wanted is made of its own archive.
    let plain = blob(&layer, CompressionKind::Uncompressed, true).await;
    assert_eq!((&plain.diff_id, Some(&plain.diff_id)), (&plain.descriptor.digest, layer.diff_id().as_ref()));
    assert_eq!(blob(&layer, CompressionKind::Gzip, false).await.diff_id, plain.diff_id);
    for force in [false, true] {
        assert_eq!(blob(&layer, CompressionKind::Estargz, force).await.descriptor, made.descriptor);
    }
    let rewritten = layer.retimed(1, made_with(CompressionKind::Estargz), None, &Cancel::new(), &Reporter::silent()).await.unwrap();
    let bytes = layers.content().read(&rewritten.descriptor.digest).unwrap();
    let toc = check(&bytes, &rewritten.descriptor.annotations);
    assert!(toc["entries"].as_array().unwrap().iter().all(|e| e["type"] == "chunk" || e["modtime"] == "1970-01-01T00:00:01Z"), "{toc:#}");
    assert_eq!(rewritten.diff_id, Digest::of(gunzip(&bytes)));

    // Elsewhere it is a layer like any other.
    let there = other.open();
    let pulled = pull(&there, &[gunzip(&bytes)]).await;
    let even = pulled.view().unwrap().require("/d/even", snapshot::Follow::No).unwrap();
    assert!(std::fs::read(even.real_path()).unwrap() == files()[2].1);
}

fn made_with(kind: CompressionKind) -> Compression {
    Compression { kind, level: None, force: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_new_layers_get_a_table_unless_it_is_forced() {
    let home = Home::new();
    let layers = home.open();
    let layer = pull(&layers, &[Archive::default().file("a", "1").end()]).await;
    let before = layer.known_blobs();
    let kept = blob(&layer, CompressionKind::Estargz, false).await;
    assert_eq!((&kept.descriptor.digest, kept.descriptor.annotations.get(TOC_DIGEST)), (&before[0].digest, None));
    let forced = blob(&layer, CompressionKind::Estargz, true).await;
    assert!(forced.descriptor.annotations.contains_key(TOC_DIGEST));
    assert_ne!(forced.diff_id, kept.diff_id);
}

/// Files that are gone are unpacked again, here from the only blob that there is.
#[tokio::test(flavor = "multi_thread")]
async fn files_come_back_without_the_table() {
    let home = Home::new();
    let layers = home.open();
    let (id, tree) = {
        let layer = layer(&layers);
        blob(&layer, CompressionKind::Estargz, false).await;
        (layer.id(), layer.stack().unwrap()[0])
    };
    layers.trees().remove(&tree).unwrap();
    layers.flush().await.unwrap();
    let layers = home.open_again(layers);
    let layer = layers.get(&id).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_ne!(layer.stack().unwrap()[0], tree);
    let names: Vec<_> = layer.view().unwrap().read_dir("/").unwrap().iter().map(|entry| entry.name().to_owned()).collect();
    assert_eq!(names, ["d", "empty", "link", "small"]);
    let plain = blob(&layer, CompressionKind::Gzip, true).await;
    assert_eq!(Some(plain.diff_id), layer.diff_id(), "the files are what they were");
}
