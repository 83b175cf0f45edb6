//! Clients whose files are lies, and sessions that are noise.
use std::fs;

use bytes::Bytes;
use prost::Message as _;
use proto::fsutil::types::packet::PacketType;
use proto::fsutil::types::{Packet, Stat};
use proto::pb;
use session::go_mode;
use testkit::Daemon;

use crate::client::{Liar, connect, solve, tunnel};
use crate::lives_on;

fn stat(path: &str, mode: u32, link: &str, size: i64) -> Packet {
    let stat = Stat { path: path.into(), mode, linkname: link.into(), size, mod_time: 1, ..Default::default() };
    Packet { r#type: PacketType::PacketStat as i32, stat: Some(stat), ..Default::default() }
}

fn file(path: &str) -> Packet {
    stat(path, 0o644, "", 1)
}

fn of_type(kind: i32, id: u32, data: &str) -> Packet {
    Packet { r#type: kind, id, data: Bytes::copy_from_slice(data.as_bytes()), ..Default::default() }
}

fn end() -> Packet {
    of_type(PacketType::PacketStat as i32, 0, "")
}

fn data(id: u32, text: &str) -> Packet {
    of_type(PacketType::PacketData as i32, id, text)
}

fn fin() -> Packet {
    of_type(PacketType::PacketFin as i32, 0, "")
}

fn local(session: &str) -> pb::Definition {
    let attrs = [("local.session".to_owned(), session.to_owned())].into();
    let op = pb::Op { op: Some(pb::op::Op::Source(pb::SourceOp { identifier: "local://context".into(), attrs })), ..Default::default() };
    let encoded = op.encode_to_vec();
    let input = pb::Input { digest: oci::Digest::of(&encoded).to_string(), index: 0 };
    let end = pb::Op { inputs: vec![input], ..Default::default() };
    pb::Definition { def: vec![encoded.into(), end.encode_to_vec().into()], ..Default::default() }
}

#[tokio::test]
async fn files_that_want_out() {
    let daemon = Daemon::start(&[]);
    let client = connect(&daemon).await;
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "alive").unwrap();
    let out = outside.path().to_str().unwrap();
    let (dir, link) = (go_mode::DIR | 0o755, go_mode::SYMLINK | 0o777);
    let up = format!("../../../../../../../../../..{out}/evil");
    let absolute = format!("{out}/evil");
    for (packets, wants) in [
        (vec![file("../evil"), end()], &["escape check ../evil"][..]),
        (vec![file(&up), end()], &["escape check"]),
        (vec![file(&absolute), end()], &["absolute path", "evil"]),
        (vec![stat("a", dir, "", 0), file("a/../../evil"), end()], &["escape check a/../../evil"]),
        (vec![stat("a", link, out, 0), file("a/evil"), end(), data(1, "x"), data(1, ""), fin()], &["changes out of order", "a/evil"]),
        (vec![stat("a", link, out, 0), stat("a", dir, "", 0), end()], &["changes out of order"]),
        (vec![stat("a", 0o644, &canary.display().to_string(), 0), end()], &["invalid link a to unknown path"]),
        (vec![stat("a", 0o644, "../canary", 0), end()], &["invalid link a to unknown path"]),
        (vec![stat("a", link, out, 0), stat("b", 0o644, "a", 0), end()], &["invalid link b to unknown path"]),
        (vec![file("a\0b"), end()], &["unclean path"]),
        (vec![file("."), end()], &["unclean path"]),
        (vec![file(""), end()], &["unclean path"]),
        (vec![file("b"), file("a"), end()], &["changes out of order"]),
        (vec![file("a"), end(), data(0, "x"), data(9, "y")], &["invalid file request 9"]),
        (vec![stat("w", go_mode::DEVICE | go_mode::CHAR_DEVICE, "", 0), end()], &["w is a character device 0:0"]),
        (vec![of_type(77, 0, "")], &["packet of unknown type 77"]),
        (vec![of_type(PacketType::PacketReq as i32, 3, "")], &["invalid file request 3"]),
        (vec![of_type(PacketType::PacketErr as i32, 0, "no disk, sorry")], &["error from sender: no disk, sorry"]),
        (vec![file("a")], &["the client ended the transfer early"]),
        (vec![file("a"), end(), data(0, "x")], &["the client ended the transfer early"]),
        (vec![], &["the client ended the transfer early"]),
    ] {
        let liar = Liar::open(&client, packets.clone()).await;
        let said = solve(&client, local(&liar.id), &liar.id).await;
        for want in wants {
            assert!(said.contains(want), "wanted {want:?}, got {said:?} for {packets:?}");
        }
        assert_eq!(fs::read(&canary).unwrap(), b"alive");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{packets:?}");
    }
    let honest = Liar::open(&client, vec![file("a"), end(), data(0, "x"), data(0, ""), fin()]).await;
    assert_eq!(solve(&client, local(&honest.id), &honest.id).await, "", "such a client can also be honest");
    lives_on(&daemon);
}

#[tokio::test]
async fn sessions_that_are_noise() {
    let daemon = Daemon::start(&[]);
    let client = connect(&daemon).await;
    let settings = b"\0\0\0\x04\0\0\0\0\0".to_vec();
    let frames: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        // A frame of nine bytes that claims sixteen megabytes; data on a stream that never was; a header block cut short.
        b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(),
        [&settings[..], b"\0\0\x05\0\0\0\0\0\x01hello"].concat(),
        [&settings[..], b"\0\0\x03\x01\x04\0\0\0\x01\x82\xff\xff"].concat(),
        Vec::new(),
    ];
    for noise in frames {
        let (sender, _incoming, id) = tunnel(&client).await;
        sender.send(noise.clone().into()).await.unwrap();
        drop(sender);
        let said = solve(&client, local(&id), &id).await;
        assert!(!said.is_empty(), "it built from {noise:?}");
    }
    lives_on(&daemon);
}
