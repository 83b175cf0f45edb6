//! The durable form of content digests.
#![no_main]
use libfuzzer_sys::fuzz_target;
use treehash::Records;

fuzz_target!(|data: &[u8]| {
    let Ok(records) = Records::decode(data) else { return };
    assert_eq!(Records::decode(&records.encode()), Ok(records), "what was read can be written and read again");
});
