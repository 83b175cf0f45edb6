//! apk's database of installed packages.
use crate::package::Package;
use crate::release::Release;

pub(crate) fn parse(text: &str, release: &Release) -> Vec<Package> {
    text.split("\n\n").filter_map(|entry| package(entry, release)).collect()
}

fn package(entry: &str, release: &Release) -> Option<Package> {
    let field = |letter: &str| entry.lines().find_map(|line| line.strip_prefix(letter)?.strip_prefix(':'));
    let name = field("P")?;
    let mut package = Package::new("apk", name, field("V")?);
    package.namespace = release.namespace("alpine").to_owned();
    package.license = field("L").unwrap_or_default().to_owned();
    package.supplier = field("m").unwrap_or_default().to_owned();
    package.qualify("arch", field("A").unwrap_or_default());
    package.qualify("distro", release.distro());
    package.qualify("upstream", field("o").filter(|origin| *origin != name).unwrap_or_default());
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::purl;

    #[test]
    fn fields_are_letters() {
        let text = "C:Q1abc=\nP:musl-utils\nV:1.2.4-r2\nA:x86_64\nL:MIT AND BSD-2-Clause\no:musl\nm:T <t@a.org>\nF:sbin\nR:ldconfig\n\n\
                    P:busybox\nV:1.36.1-r5\nA:x86_64\no:busybox\n\n";
        let found = parse(text, &Release::parse("ID=alpine\nVERSION_ID=3.18.4"));
        let urls: Vec<String> = found.iter().map(purl).collect();
        assert_eq!(
            urls,
            [
                "pkg:apk/alpine/musl-utils@1.2.4-r2?arch=x86_64&distro=alpine-3.18.4&upstream=musl",
                "pkg:apk/alpine/busybox@1.36.1-r5?arch=x86_64&distro=alpine-3.18.4"
            ]
        );
        assert_eq!(found[0].license, "MIT AND BSD-2-Clause");
    }
}
