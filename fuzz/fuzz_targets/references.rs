//! Image references, digests, platforms, times and git references.
#![no_main]
use dockerfile::{GitRef, parse_platform};
use libfuzzer_sys::fuzz_target;
use oci::{Digest, Platform, Reference, Timestamp};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(written.parse::<Reference>().as_ref(), Ok(&reference), "{written}");
        let familiar = reference.familiar();
        assert_eq!(familiar.parse::<Reference>().as_ref(), Ok(&reference), "{familiar}");
        let pinned = reference.clone().or_latest().with_digest(Digest::of("x")).pinned();
        assert_eq!(pinned.to_string().parse::<Reference>(), Ok(pinned));
        let _ = (reference.with_tag(text), reference.without_suffix(), reference.identifier());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
        let _ = (digest.algorithm(), digest.hex(), digest.clone().into_random());
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let normal = platform.normalized();
        assert_eq!(normal.clone().normalized(), normal);
        let _ = (normal.alternatives(), Platform::host().rank(&normal));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        let written = time.to_string();
        assert_eq!(written.parse::<Timestamp>().map(|t| (t.unix_seconds(), t.subsec_nanos())), Ok((time.unix_seconds(), time.subsec_nanos())), "{written}");
    }
    let _ = parse_platform(text);
    let _ = GitRef::parse(text);
});
