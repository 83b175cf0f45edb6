//! dpkg's status file, and the directory of single entries that distroless images have in its place.
use crate::package::Package;
use crate::release::Release;

pub(crate) fn parse(text: &str, release: &Release) -> Vec<Package> {
    text.split("\n\n").filter_map(|stanza| package(stanza, release)).collect()
}

fn package(stanza: &str, release: &Release) -> Option<Package> {
    let field = |name: &str| {
        let line = stanza.lines().find(|line| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name)))?;
        Some(line.split_once(':')?.1.trim())
    };
    // Entries of packages that were removed stay for their configuration. Single entries do not say.
    if field("Status").is_some_and(|status| status.split_whitespace().last() != Some("installed")) {
        return None;
    }
    let version = field("Version")?;
    let mut package = Package::new("deb", field("Package")?, version);
    package.namespace = release.namespace("debian").to_owned();
    package.supplier = field("Maintainer").unwrap_or_default().to_owned();
    package.qualify("arch", field("Architecture").unwrap_or_default());
    package.qualify("distro", release.distro());
    // `name`, or `name (version)` where that differs too.
    let (source, its_version) = field("Source").map_or(("", None), |source| match source.split_once(" (") {
        Some((name, version)) => (name, Some(version.trim_end_matches(')'))),
        None => (source, None),
    });
    if !source.is_empty() {
        package.qualify("upstream", its_version.map_or_else(|| source.to_owned(), |version| format!("{source}@{version}")));
    }
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::purl;

    #[test]
    fn installed_packages_are_found_and_removed_ones_are_not() {
        let text = "Package: libc6\nStatus: install ok installed\nMaintainer: GNU Libc <m@d.org>\nArchitecture: amd64\nSource: glibc (2.36-9)\n\
                    Version: 2.36-9+deb12u4\nDescription: libraries\n Package: not one\n\nPackage: gone\nStatus: deinstall ok config-files\n\
                    Version: 1\n\nPackage: base-files\nVersion: 12.4\nSource: base\n";
        let release = Release::parse("ID=debian\nVERSION_ID=12");
        let found = parse(text, &release);
        let urls: Vec<String> = found.iter().map(purl).collect();
        assert_eq!(
            urls,
            [
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-9",
                "pkg:deb/debian/base-files@12.4?distro=debian-12&upstream=base"
            ]
        );
        assert_eq!(found[0].supplier, "GNU Libc <m@d.org>");
        assert!(parse("", &release).is_empty() && parse("Package: x\n", &release).is_empty());
    }
}
