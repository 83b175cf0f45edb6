//! Messages of sessions and calls: file transfer packets, escaped headers, details of failures, ops as JSON.
#![no_main]
use fault::Detail;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::fsutil::types as pb;

const DETAILS: [&str; 7] = [
    "errdefs.Vertex+json",
    "errdefs.Source+json",
    "errdefs.Frontend+json",
    "errdefs.FrontendCap+json",
    "errdefs.Subrequest+json",
    "errdefs.Solve+json",
    "gatewayapi.ExitMessage+json",
];

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = pb::Packet::decode(data)
        && let Ok(packet) = wire::into_packet(message)
    {
        let bytes = wire::from_packet(packet.clone()).encode_to_vec();
        assert_eq!(wire::into_packet(pb::Packet::decode(&*bytes).expect("our own packet")).expect("our own packet"), packet);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let (escaped, _) = wire::escape(&[text.to_owned()]);
        let _ = wire::unescape(text);
        assert!(escaped[0].is_ascii());
    }
    for name in DETAILS {
        let _ = wire::decode_detail(Detail::Other { type_url: format!("github.com/moby/buildkit/{name}"), value: data.to_vec() });
    }
    if let Ok(status) = proto::google::rpc::Status::decode(data) {
        let _ = wire::status::into_message(&wire::status::message_into_fault(&status));
    }
    let _ = wire::op_json(data).map(|json| json.to_string());
});
