//! Keys and signatures: the first two bytes say how long the key is, the signature is the rest.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let (key, signature) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
    sources::fuzzing::verify_signature(key, signature);
});
