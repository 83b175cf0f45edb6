//! Archives as they come, friendly and not.
#![allow(clippy::unwrap_used)]
mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Archive, Home, image, listing, pull};
use layers::{Layer, Layers};
use oci::{Descriptor, Digest, media};
use progress::Reporter;
use snapshot::Follow;
use task::Cancel;

async fn try_pull(layers: &Layers, archives: &[Vec<u8>]) -> fault::Result<Layer> {
    let (list, source) = image(archives);
    let layer = layers.from_image(list, Arc::new(source))?.unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await?;
    Ok(layer)
}

async fn unpacked(archive: Archive) -> Vec<String> {
    let home = Home::new();
    let layers = home.open();
    listing(&pull(&layers, &[archive.end()]).await.view().unwrap())
}

async fn refused(archive: Archive) -> String {
    let home = Home::new();
    let layers = home.open();
    let error = try_pull(&layers, &[archive.end()]).await.unwrap_err();
    assert!(layers.trees().trees().unwrap().is_empty(), "nothing stays");
    error.to_string()
}

/// Own files of a layer's topmost tree.
fn own(layers: &Layers, layer: &Layer) -> PathBuf {
    layers.trees().files(layer.stack().unwrap().last().unwrap()).unwrap()
}

#[tokio::test]
async fn names_never_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    std::fs::write(&canary, "alive").unwrap();
    let out = outside.path().to_str().unwrap();
    let home = Home::new();
    let layers = home.open();
    for archive in [
        Archive::default().file("../../../../../../../../escape", "x"),
        Archive::default().file("/absolute", "x"),
        Archive::default().file("a/../../../b", "x"),
        Archive::default().symlink("link", out).file("link/evil", "x"),
        Archive::default().symlink("link", "../../../../../../../../../../..").file("link/tmp/evil", "x"),
        Archive::default().symlink("one", "two").symlink("two", out).file("one/evil", "x"),
        Archive::default().dir("d/", 0o755).symlink("d/up", "/..").file("d/up/../up/evil", "x"),
        Archive::default().symlink("file", &format!("{out}/canary")).file("file", "dead"),
        Archive::default().symlink("link", out).dir("link/", 0o700),
        Archive::default().symlink("w", out).file("w/.wh.canary", ""),
        Archive::default().symlink("w", out).file("w/.wh..wh..opq", ""),
    ] {
        let layer = pull(&layers, &[archive.end()]).await;
        assert!(layer.is_realized());
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&canary).unwrap(), b"alive");
    assert_eq!(canary.metadata().unwrap().nlink(), 1);

    let to_canary = format!("{out}/canary");
    for target in [to_canary.as_str(), "../../../../../../etc/passwd", "link/canary", "missing", ""] {
        let error = refused(Archive::default().symlink("link", out).hard_link("stolen", target)).await;
        assert!(error.contains("could not link to"), "{target}: {error}");
    }
    assert_eq!(canary.metadata().unwrap().nlink(), 1);
    let error = refused(Archive::default().symlink("a", "b").symlink("b", "a").file("a/x", "")).await;
    assert!(error.contains("too many links"), "{error}");
    for bad in ["x/.wh.", "x/.wh..", "x/.wh..."] {
        let error = refused(Archive::default().file(bad, "")).await;
        assert!(error.contains("invalid whiteout name"), "{bad}: {error}");
    }
    let error = refused(Archive::default().file("f", "").file("f/x", "")).await;
    assert!(error.to_lowercase().contains("not a directory"), "{error}");
    let deep = "d/".repeat(3000);
    let error = refused(Archive::default().pax(&[("path", deep.as_bytes())]).dir("short", 0o755)).await;
    assert!(error.contains("too long"), "{error}");
}

#[tokio::test]
async fn links_in_the_way_are_followed_within_the_tree() {
    let archive = Archive::default()
        .dir("usr/lib/", 0o755)
        .symlink("lib", "/usr/lib")
        .file("lib/x", "1")
        .symlink("usr/back", "../usr/lib/../lib")
        .file("usr/back/y", "2")
        .symlink("dangling", "made/here")
        .file("dangling/z", "3")
        .hard_link("same", "lib/x");
    let found = unpacked(archive).await;
    for line in ["/usr/lib/x 644 1", "/usr/lib/y 644 2", "/made/here/z 644 3", "/same 644 1", "/lib 777 -> /usr/lib"] {
        assert!(found.iter().any(|l| l == line), "{line} in {found:#?}");
    }
}

#[tokio::test]
async fn later_entries_replace_earlier_ones() {
    let archive = Archive::default()
        .file("a", "file")
        .dir("a/", 0o755)
        .file("a/in", "1")
        .dir("b/c/", 0o755)
        .file("b/c/d", "1")
        .file("b", "now a file")
        .dir("keep/", 0o700)
        .file("keep/x", "1")
        .dir("keep/", 0o711)
        .symlink("s", "keep")
        .file("s", "no link");
    let want = ["/a 755 /", "/a/in 644 1", "/b 644 now a file", "/keep 711 /", "/keep/x 644 1", "/s 644 no link"];
    assert_eq!(unpacked(archive).await, want);
}

#[tokio::test]
async fn whiteouts_become_overlay_s() {
    let home = Home::new();
    let layers = home.open();
    let base = Archive::default().file("d/a", "0").file("d/b", "0").file("o/x", "0").file("o/s/y", "0").file("r/z", "0").dir("q/m/", 0o755);
    let next = Archive::default()
        .file("d/.wh.a", "")
        .file("o/.wh..wh..opq", "")
        .file("o/n", "1")
        // Gone below and new here, in both orders.
        .file(".wh.r", "")
        .dir("r/", 0o755)
        .dir("q/", 0o755)
        .file(".wh.q", "")
        .file("d/b", "1")
        .file("d/.wh.b", "");
    let layer = pull(&layers, &[base.end(), next.end()]).await;
    assert_eq!(listing(&layer.view().unwrap()), ["/d 755 /", "/d/b 644 1", "/o 755 /", "/o/n 644 1", "/q 755 /", "/r 755 /"]);
    let target = tempfile::tempdir().unwrap();
    let mounted = layer.mount_spec().unwrap().mount_at(target.path()).unwrap();
    let names = |dir: &str| {
        let mut names: Vec<_> = std::fs::read_dir(target.path().join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!((names("d"), names("o"), names("r"), names("q")), (vec!["b".into()], vec!["n".into()], vec![], vec![]));
    mounted.unmount().unwrap();

    let all = pull(
        &layers,
        &[Archive::default().file("x", "0").file("d/y", "0").end(), Archive::default().file(".wh..wh..opq", "").file("d/z", "1").end()],
    )
    .await;
    assert_eq!(listing(&all.view().unwrap()), ["/d 755 /", "/d/z 644 1"]);
}

#[tokio::test]
async fn metadata_arrives() {
    let home = Home::new();
    let layers = home.open();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut device = Archive::header(b"dev", b'3', 0o620, 0, b"");
    device[329..337].copy_from_slice(b"0000005\0");
    device[337..345].copy_from_slice(b"0000001\0");
    common::seal(&mut device);
    let long = format!("{}/{}", "n".repeat(120), "m".repeat(90));
    let archive = Archive::default()
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("uid", b"3000000"),
            ("gid", b"4000000000"),
            ("SCHILY.xattr.user.k", b"v\0\n=w"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .block(Archive::header(b"suid", b'0', 0o6755, 3, b""), b"abc")
        .block(device, b"")
        .block(Archive::header(b"fifo", b'6', 0o600, 0, b""), b"")
        .pax(&[("path", long.as_bytes())])
        .file("short", "long")
        .block(Archive::header(b"././@LongLink", b'L', 0, 201, b""), &[vec![b'g'; 200], vec![0]].concat())
        .file("truncated", "gnu")
        .block(Archive::header(b"bad\xff", b'0', 0o644, 1, b""), b"!")
        .pax(&[("mtime", b"-5.5")])
        .dir("old/", 0o1777)
        .file("old/x", "1")
        .pax(&[("mtime", b"1500000000.25")])
        .symlink("sl", "anywhere");
    let layer = pull(&layers, &[archive.end()]).await;
    let root = own(&layers, &layer);
    let stat = |name: &str| root.join(name).symlink_metadata().unwrap();
    let suid = stat("suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid()), (0o6755, 3_000_000, 4_000_000_000));
    assert_eq!((suid.mtime(), suid.mtime_nsec()), (1_234_567_890, 123_456_789));
    let xattrs = layer.view().unwrap().xattrs("/suid").unwrap();
    assert_eq!(xattrs.get(std::ffi::OsStr::new("user.k")).unwrap(), b"v\0\n=w");
    assert_eq!(xattrs.get(std::ffi::OsStr::new("security.capability")).unwrap(), capability);
    assert_eq!(xattrs.len(), 2, "{xattrs:?}");
    let mut value = [0; 8];
    assert!(rustix::fs::lgetxattr(root.join("suid"), "trusted.overlay.opaque", &mut value[..]).is_err());
    let device = layer.view().unwrap().require("/dev", Follow::No).unwrap();
    assert_eq!((device.metadata().device(), device.metadata().permissions()), ((5, 1), 0o620));
    assert_eq!(stat("fifo").mode() & 0o170_000, 0o010_000);
    assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(std::fs::read(root.join("g".repeat(200))).unwrap(), b"gnu");
    use std::os::unix::ffi::OsStrExt as _;
    assert!(root.join(std::ffi::OsStr::from_bytes(b"bad\xff")).exists());
    assert_eq!((stat("old").mtime(), stat("old").mode() & 0o7777), (0, 0o1777), "times before 1970 become 1970, also after files came in");
    assert_eq!((stat("sl").mtime(), stat("sl").mtime_nsec()), (1_500_000_000, 250_000_000));
}

#[tokio::test]
async fn files_with_holes() {
    let home = Home::new();
    let layers = home.open();
    // Old GNU: one segment of 5 bytes at 1 MiB in a file of 2 MiB.
    let mut gnu = Archive::header(b"gnu", b'S', 0o644, 5, b"");
    gnu[257..265].copy_from_slice(b"ustar  \0");
    gnu[386..398].copy_from_slice(b"00004000000\0");
    gnu[398..410].copy_from_slice(b"00000000005\0");
    gnu[483..495].copy_from_slice(b"00010000000\0");
    common::seal(&mut gnu);
    let mut map = b"1\n1048576\n5\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"pax10");
    let archive = Archive::default()
        .block(gnu, b"gnu00")
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"pax10"), ("GNU.sparse.realsize", b"2097152")])
        .block(Archive::header(b"GNUSparseFile.0/pax10", b'0', 0o644, 517, b""), &map)
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"pax01"),
            ("GNU.sparse.size", b"2097152"),
            ("GNU.sparse.map", b"1048576,5"),
        ])
        .block(Archive::header(b"x", b'0', 0o644, 5, b""), b"pax01")
        .file("after", "fine");
    let layer = pull(&layers, &[archive.end()]).await;
    let root = own(&layers, &layer);
    for name in ["gnu", "pax10", "pax01"] {
        let data = std::fs::read(root.join(name)).unwrap();
        assert_eq!(data.len(), 2 << 20, "{name}");
        assert_eq!(&data[1 << 20..(1 << 20) + 3], &name.as_bytes()[..3]);
        assert_eq!(data.iter().filter(|&&b| b != 0).count(), 5);
        assert!(root.join(name).metadata().unwrap().blocks() < 64, "{name} has its holes");
    }
    assert_eq!(std::fs::read(root.join("after")).unwrap(), b"fine");
    let overlapping = Archive::default()
        .pax(&[("GNU.sparse.major", b"0"), ("GNU.sparse.minor", b"1"), ("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,3,2,2")])
        .block(Archive::header(b"x", b'0', 0o644, 5, b""), b"12345");
    assert!(refused(overlapping).await.contains("sparse map"));
}

#[tokio::test]
async fn broken_archives_are_refused() {
    let good = Archive::default().file("a", "content").end();
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    let mut sizes = good.clone();
    sizes[124..136].copy_from_slice(b"77777777777\0");
    let mut block: [u8; 512] = sizes[..512].try_into().unwrap();
    common::seal(&mut block);
    sizes[..512].copy_from_slice(&block);
    let huge_pax = Archive::default().block(Archive::header(b"p", b'x', 0, 1 << 30, b""), b"").end();
    let bad_pax = Archive::default().block(Archive::header(b"p", b'x', 0, 9, b""), b"99 a=b\n  ").end();
    let unknown = Archive::default().block(Archive::header(b"v", b'V', 0, 0, b""), b"").end();
    for (archive, part) in [
        (checksum, "checksum"),
        (good[..515].to_vec(), "could not read the archive"),
        (sizes, "could not read the archive"),
        (huge_pax, "extended header too long"),
        (bad_pax, "extended record"),
        (unknown, "unsupported tar entry type 'V'"),
        ([vec![0; 512], vec![1; 512]].concat(), "one empty block"),
    ] {
        let home = Home::new();
        let layers = home.open();
        let error = try_pull(&layers, &[archive]).await.unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // A gzip stream that breaks off.
    let home = Home::new();
    let layers = home.open();
    let (mut list, mut source) = image(std::slice::from_ref(&good));
    let cut = source.blobs[0].slice(..source.blobs[0].len() - 10);
    list[0].descriptor = Descriptor::of(media::OCI_LAYER_GZIP, &cut);
    source.blobs = vec![cut];
    let layer = layers.from_image(list, Arc::new(source)).unwrap().unwrap();
    assert!(layer.realize(&Cancel::new(), &Reporter::silent()).await.is_err());

    assert_eq!(listing(&pull(&layers, &[Vec::new()]).await.view().unwrap()), Vec::<String>::new(), "empty is fine");
}

#[tokio::test]
async fn what_follows_the_archive_counts_for_the_digest() {
    let home = Home::new();
    let layers = home.open();
    let mut archive = Archive::default().file("a", "1").end();
    archive.extend_from_slice(&[0; 8192]);
    let layer = pull(&layers, &[archive.clone()]).await;
    assert_eq!(layer.diff_id().unwrap(), Digest::of(&archive));
}

#[tokio::test]
async fn zstd_and_plain_blobs() {
    let home = Home::new();
    let layers = home.open();
    let archive = Archive::default().file("a", &"text ".repeat(10_000)).end();
    for (blob, media_type) in [(zstd::encode_all(&archive[..], 3).unwrap(), media::OCI_LAYER_ZSTD), (archive.clone(), media::DOCKER_LAYER)]
    {
        let (mut list, mut source) = image(std::slice::from_ref(&archive));
        list[0].descriptor = Descriptor::of(media_type, &blob);
        source.blobs = vec![blob.into()];
        let layer = layers.from_image(list, Arc::new(source)).unwrap().unwrap();
        layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
        assert_eq!(layer.view().unwrap().require("/a", Follow::No).unwrap().metadata().size, 50_000);
        assert!(common::exists(Path::new(&own(&layers, &layer).join("a"))));
    }
}
