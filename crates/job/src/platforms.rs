//! Which platforms a result is for, and whether they are those that were asked for.
use std::collections::BTreeSet;

use bytes::Bytes;
use fault::{Fault, Result};
use frontend::{Outcome, Refs};
use oci::Platform;
use serde::Deserialize;

#[derive(Deserialize)]
struct List {
    #[serde(rename = "Platforms")]
    platforms: Option<Vec<Entry>>,
}

/// One result's platform, and the key of its ref and metadata.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Platform")]
    pub platform: Platform,
}

/// The platforms of a result: those that the frontend lists, or the one of its config, or the host's.
pub fn listed(outcome: &Outcome) -> Result<Vec<Entry>> {
    let Some(json) = outcome.metadata.get("refs.platforms") else {
        if matches!(outcome.refs, Refs::Map(_)) {
            return Err(Fault::invalid("build result contains multiple refs without platforms mapping"));
        }
        let platform = of_config(outcome.metadata.get("containerimage.config"))?.unwrap_or_else(Platform::host);
        return Ok(vec![Entry { id: platform.to_string(), platform }]);
    };
    let list: Option<List> = match json.is_empty() {
        true => None,
        false => serde_json::from_slice(json).map_err(|e| Fault::invalid(format!("failed to parse platforms passed to exporter: {e}")))?,
    };
    let mut entries = list.and_then(|list| list.platforms).unwrap_or_default();
    if entries.is_empty() {
        return Err(Fault::invalid("invalid empty platforms index for exporter"));
    }
    for Entry { id, platform } in &mut entries {
        if id.is_empty() {
            return Err(Fault::invalid("invalid empty platform key for exporter"));
        }
        if platform.os.is_empty() || platform.architecture.is_empty() {
            return Err(Fault::invalid(format!("invalid platform value {platform} for exporter: it needs an os and an architecture")));
        }
        *platform = std::mem::take(platform).normalized();
    }
    Ok(entries)
}

fn of_config(config: Option<&Bytes>) -> Result<Option<Platform>> {
    // A config that is none is the exporter's to refuse.
    let Some(platform) = config.and_then(|json| serde_json::from_slice::<Platform>(json).ok()) else { return Ok(None) };
    match (platform.os.is_empty(), platform.architecture.is_empty()) {
        (false, false) => Ok(Some(platform.normalized())),
        (true, true) => Ok(None),
        _ => Err(Fault::invalid("invalid image config: os and architecture must be specified together")),
    }
}

/// What the user should know if the platforms are not those of the `platform` attribute (the host's, without one).
pub fn mismatch(asked: Option<&str>, outcome: &Outcome, listed: &[Entry]) -> Vec<String> {
    let is_empty = outcome.all().iter().all(|(_, reference)| reference.is_none());
    if is_empty && !outcome.metadata.contains_key("refs.platforms") {
        return Vec::new();
    }
    let host = Platform::host().to_string();
    let asked: Vec<&str> = asked.map_or_else(|| vec![host.as_str()], |asked| asked.split(',').collect());
    let mut wanted = BTreeSet::new();
    let mut warnings = Vec::new();
    for text in &asked {
        match text.parse::<Platform>() {
            Ok(platform) if wanted.insert(platform.clone().normalized().to_string()) => {}
            Ok(_) => warnings.push(format!("Duplicate platform result requested {text:?}")),
            Err(error) => warnings.push(format!("Invalid platform result requested {text:?}: {error}")),
        }
    }
    if !warnings.is_empty() {
        return warnings;
    }
    let got: BTreeSet<String> = listed.iter().map(|entry| entry.platform.to_string()).collect();
    if let ([text], [entry]) = (asked.as_slice(), listed) {
        // Who does not ask for a version of the system takes any.
        let loose = Platform { os_version: String::new(), ..entry.platform.clone() }.to_string();
        return match wanted.contains(&entry.platform.to_string()) || wanted.contains(&loose) {
            true => Vec::new(),
            false => vec![format!("Requested platform {text:?} does not match result platform {:?}", entry.platform.to_string())],
        };
    }
    if wanted.len() > 1 && matches!(outcome.refs, Refs::Single(_)) {
        return vec!["Multiple platforms requested but result is not multi-platform".to_owned()];
    }
    match wanted == got {
        true => Vec::new(),
        false => vec![format!("Requested platforms {} do not match result platforms {}", joined(&wanted), joined(&got))],
    }
}

fn joined(platforms: &BTreeSet<String>) -> String {
    platforms.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn outcome(metadata: &[(&str, &str)], keys: &[&str]) -> Outcome {
        let refs = match keys {
            [] => Refs::Single(None),
            keys => Refs::Map(keys.iter().map(|key| ((*key).to_owned(), None)).collect()),
        };
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), Bytes::from((*value).to_owned()))).collect();
        Outcome { refs, metadata, attestations: BTreeMap::new() }
    }

    const TWO: &str = r#"{"Platforms":[{"ID":"a","Platform":{"os":"linux","architecture":"amd64"}},{"ID":"b","Platform":{"os":"linux","architecture":"aarch64"}}]}"#;

    #[test]
    fn what_is_no_list_of_platforms_is_refused_by_name() {
        for (metadata, keys, want) in [
            (("refs.platforms", "null"), &[][..], "invalid empty platforms index for exporter"),
            (("refs.platforms", r#"{"Platforms":[{"ID":"","Platform":{"os":"","architecture":""}}]}"#), &[], "invalid empty platform key"),
            (("refs.platforms", r#"{"Platforms":[{"ID":"x","Platform":{"os":"","architecture":""}}]}"#), &[], "invalid platform value"),
            (("containerimage.config", r#"{"architecture":"amd64","os":""}"#), &[], "os and architecture must be specified together"),
            (("x", ""), &["a", "b"], "multiple refs without platforms mapping"),
        ] {
            let said = listed(&outcome(&[metadata], keys)).unwrap_err().to_string();
            assert!(said.contains(want), "{metadata:?}: {said}");
        }
        let entries = listed(&outcome(&[("refs.platforms", TWO)], &["a", "b"])).unwrap();
        assert_eq!(entries[1].platform.to_string(), "linux/arm64");
    }

    #[test]
    fn a_result_for_other_platforms_is_told() {
        let two = outcome(&[("refs.platforms", TWO)], &["a", "b"]);
        let warn = |asked: &str, outcome: &Outcome| mismatch(Some(asked), outcome, &listed(outcome).unwrap());
        assert!(warn("linux/amd64,linux/arm64", &two).is_empty());
        assert_eq!(warn("linux/amd64", &two), ["Requested platforms linux/amd64 do not match result platforms linux/amd64,linux/arm64"]);
        let one = outcome(&[("refs.platforms", r#"{"Platforms":[{"ID":"a","Platform":{"os":"linux","architecture":"amd64"}}]}"#)], &[]);
        assert_eq!(warn("linux/amd64,linux/arm64", &one), ["Multiple platforms requested but result is not multi-platform"]);
        assert_eq!(warn("linux/arm64", &one), ["Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\""]);
        assert!(warn("linux/amd64", &one).is_empty());
        assert!(mismatch(Some("linux/s390x"), &outcome(&[], &[]), &[]).is_empty(), "nothing was built");
    }
}
