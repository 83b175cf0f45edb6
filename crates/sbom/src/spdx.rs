//! The document, in the JSON form of SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>).
use std::collections::BTreeMap;

use oci::{Digest, Timestamp, gojson};
use serde::Serialize;

use crate::package::{Package, purl};
use crate::tree::{Evidence, Found};

pub const SPDX_VERSION: &str = "SPDX-2.3";
/// The tool that made a document.
const TOOL: &str = concat!("Tool: kiln-", env!("CARGO_PKG_VERSION"));
const NONE: &str = "NOASSERTION";
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const ROOT: &str = "SPDXRef-DocumentRoot";

/// What was found in a tree, with what a reader wants to know of it.
#[derive(Debug)]
pub struct Document<'a> {
    /// What the tree is.
    pub name: &'a str,
    pub created: Timestamp,
    pub found: &'a Found,
}

impl Document<'_> {
    pub fn to_json(&self) -> Vec<u8> {
        let evidence = &self.found.evidence;
        let files: Vec<Item> = evidence.iter().map(Item::file).collect();
        let root = Item { purpose: Some("CONTAINER"), source: self.found.system.clone(), ..Item::package(self.name, ROOT.to_owned()) };
        let (mut packages, mut relations) = (vec![root], vec![Relation::new(DOCUMENT, "DESCRIBES", ROOT)]);
        // A package that several files tell of is one.
        let mut merged: BTreeMap<(String, &Package), Vec<usize>> = BTreeMap::new();
        for (at, file) in evidence.iter().enumerate() {
            for package in &file.packages {
                let seen = merged.entry((purl(package), package)).or_default();
                if seen.last() != Some(&at) {
                    seen.push(at);
                }
            }
        }
        for ((url, package), seen) in merged {
            let item = Item::of(package, url, &evidence[seen[0]]);
            relations.push(Relation::new(ROOT, "CONTAINS", &item.id));
            relations.extend(seen.iter().map(|at| Relation {
                comment: Some("the file tells that the package is there"),
                ..Relation::new(&item.id, "OTHER", &files[*at].id)
            }));
            packages.push(item);
        }
        let contents = Contents { packages, files, relationships: relations };
        let digest = Digest::of(gojson::to_vec(&contents));
        gojson::to_vec(&Whole {
            version: SPDX_VERSION,
            license: "CC0-1.0",
            id: DOCUMENT,
            name: self.name,
            namespace: format!("{}/sbom/{}", env!("CARGO_PKG_REPOSITORY"), digest.hex()),
            comment: self.found.notes.join("\n"),
            creation: Creation { created: self.created, creators: ["Organization: kiln", TOOL] },
            contents,
        })
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(rename = "spdxVersion")]
    version: &'static str,
    #[serde(rename = "dataLicense")]
    license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: &'a str,
    #[serde(rename = "documentNamespace")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
    #[serde(rename = "creationInfo")]
    creation: Creation,
    #[serde(flatten)]
    contents: Contents,
}

#[derive(Serialize)]
struct Creation {
    created: Timestamp,
    creators: [&'static str; 2],
}

#[derive(Serialize)]
struct Contents {
    packages: Vec<Item>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<Item>,
    relationships: Vec<Relation>,
}

/// A package, or a file.
#[derive(Default, Serialize)]
struct Item {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "fileName", skip_serializing_if = "String::is_empty")]
    file_name: String,
    #[serde(rename = "SPDXID")]
    id: String,
    #[serde(rename = "versionInfo", skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<String>,
    #[serde(rename = "downloadLocation", skip_serializing_if = "Option::is_none")]
    download: Option<&'static str>,
    #[serde(rename = "filesAnalyzed", skip_serializing_if = "Option::is_none")]
    analyzed: Option<bool>,
    #[serde(rename = "sourceInfo", skip_serializing_if = "String::is_empty")]
    source: String,
    #[serde(rename = "checksums", skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(rename = "licenseConcluded")]
    license: &'static str,
    #[serde(rename = "licenseComments", skip_serializing_if = "String::is_empty")]
    license_comments: String,
    #[serde(rename = "copyrightText")]
    copyright: &'static str,
    #[serde(rename = "primaryPackagePurpose", skip_serializing_if = "Option::is_none")]
    purpose: Option<&'static str>,
    #[serde(rename = "externalRefs", skip_serializing_if = "Vec::is_empty")]
    references: Vec<Reference>,
}

#[derive(Serialize)]
struct Checksum {
    algorithm: &'static str,
    #[serde(rename = "checksumValue")]
    value: String,
}

#[derive(Serialize)]
struct Reference {
    #[serde(rename = "referenceCategory")]
    category: &'static str,
    #[serde(rename = "referenceType")]
    kind: &'static str,
    #[serde(rename = "referenceLocator")]
    locator: String,
}

#[derive(Serialize)]
struct Relation {
    #[serde(rename = "spdxElementId")]
    from: String,
    #[serde(rename = "relatedSpdxElement")]
    to: String,
    #[serde(rename = "relationshipType")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'static str>,
}

impl Relation {
    fn new(from: &str, kind: &'static str, to: &str) -> Self {
        Self { from: from.to_owned(), to: to.to_owned(), kind, comment: None }
    }
}

impl Item {
    fn bare(id: String) -> Self {
        Self { id, license: NONE, copyright: NONE, ..Self::default() }
    }

    fn package(name: &str, id: String) -> Self {
        Self { name: name.to_owned(), download: Some(NONE), analyzed: Some(false), ..Self::bare(id) }
    }

    fn of(package: &Package, url: String, evidence: &Evidence) -> Self {
        // Two that differ in nothing that a URL has differ in what they say of themselves.
        let told = Digest::of(format!("{url}\n{}\n{}", package.license, package.supplier));
        let id = format!("SPDXRef-Package-{}-{}-{}", package.kind, id_part(&package.full_name()), &told.hex()[..16]);
        let license_comments = match package.license.as_str() {
            "" => String::new(),
            license => format!("the package says: {license}"),
        };
        Self {
            version: package.full_version(),
            supplier: Some(supplier(package)),
            source: format!("found in {}", evidence.path),
            license_comments,
            references: vec![Reference { category: "PACKAGE-MANAGER", kind: "purl", locator: url }],
            ..Self::package(&package.full_name(), id)
        }
    }

    fn file(evidence: &Evidence) -> Self {
        let id = format!("SPDXRef-File-{}-{}", id_part(&evidence.path), &Digest::of(&evidence.path).hex()[..16]);
        let checksums = vec![
            Checksum { algorithm: "SHA1", value: evidence.sha1.clone() },
            Checksum { algorithm: "SHA256", value: evidence.digest.hex().to_owned() },
        ];
        Self { file_name: evidence.path.clone(), checksums, ..Self::bare(id) }
    }
}

fn supplier(package: &Package) -> String {
    let text = &package.supplier;
    match text.split_once('<') {
        _ if text.is_empty() => NONE.to_owned(),
        // Their databases name who sells them.
        _ if package.kind == "rpm" => format!("Organization: {text}"),
        Some((name, mail)) => format!("Person: {} ({})", name.trim(), mail.trim_end_matches('>').trim()),
        None => format!("Person: {text}"),
    }
}

/// Letters, digits, dots and dashes are what an id may have.
fn id_part(text: &str) -> String {
    text.trim_matches('/').chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn evidence(path: &str, packages: Vec<Package>) -> Evidence {
        Evidence { path: path.into(), sha1: "00".repeat(20), digest: Digest::of(path), packages }
    }

    fn write(found: &Found) -> Value {
        let document = Document { name: "linux/amd64", created: Timestamp::from_unix(1, 0), found };
        assert_eq!(document.to_json(), document.to_json());
        serde_json::from_slice(&document.to_json()).unwrap()
    }

    #[test]
    fn a_package_is_listed_once_with_all_that_tells_of_it() {
        let a = Package { supplier: "T <t@x.org>".into(), license: "MIT-ish".into(), ..Package::new("gem", "a/b_c", "1") };
        let found = Found {
            system: "Debian".into(),
            evidence: vec![evidence("/x/Gemfile.lock", vec![a.clone(), a.clone()]), evidence("/y/Gemfile.lock", vec![a])],
            notes: vec!["one".into(), "two".into()],
        };
        let document = write(&found);
        let packages = document["packages"].as_array().unwrap();
        assert_eq!(packages.len(), 2);
        let package = &packages[1];
        let (id, x) = (package["SPDXID"].as_str().unwrap(), document["files"][0]["SPDXID"].as_str().unwrap());
        assert!(id.starts_with("SPDXRef-Package-gem-a-b-c-") && x.starts_with("SPDXRef-File-x-Gemfile.lock-"), "{document}");
        assert_eq!(package["supplier"], "Person: T (t@x.org)");
        assert_eq!((&package["licenseConcluded"], &package["licenseComments"]), (&json!(NONE), &json!("the package says: MIT-ish")));
        assert_eq!(package["externalRefs"][0]["referenceLocator"], "pkg:gem/a%2Fb_c@1");
        let relations: Vec<(&str, &str, &str)> = document["relationships"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| ["spdxElementId", "relationshipType", "relatedSpdxElement"].map(|key| r[key].as_str().unwrap()).into())
            .collect();
        let y = document["files"][1]["SPDXID"].as_str().unwrap();
        assert_eq!(relations, [(DOCUMENT, "DESCRIBES", ROOT), (ROOT, "CONTAINS", id), (id, "OTHER", x), (id, "OTHER", y)]);
        assert_eq!(
            (document["comment"].as_str(), document["creationInfo"]["created"].as_str()),
            (Some("one\ntwo"), Some("1970-01-01T00:00:01Z"))
        );
    }

    #[test]
    fn nothing_is_a_document_too() {
        let document = write(&Found::default());
        assert_eq!((document.get("files"), document["packages"].as_array().unwrap().len()), (None, 1));
        assert_eq!(document["spdxVersion"], SPDX_VERSION);
    }
}
