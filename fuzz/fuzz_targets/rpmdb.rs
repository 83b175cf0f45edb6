//! RPM's databases of installed packages, in each of their forms.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match sbom::fuzzing::rpm(data) {
        Ok(packages) => packages.iter().for_each(|package| assert!(sbom::purl(package).starts_with("pkg:rpm/"))),
        Err(error) => drop(error.to_string()),
    }
});
