//! For which platforms a result is, and whether that is what was asked for.
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use frontend::{Outcome, Refs};
use oci::Platform;
use serde::Deserialize;

/// The id of each platform, in the order of the result, and the platform, normalized.
pub type Named = Vec<(String, Platform)>;

#[derive(Deserialize, Default)]
struct Listed {
    #[serde(rename = "Platforms", default)]
    platforms: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Platform,
}

/// What the frontend says; where it says nothing, what the image config does, or else this machine's.
pub fn of(outcome: &Outcome) -> Result<Named> {
    match outcome.metadata.get("refs.platforms") {
        Some(json) => listed(json),
        None if is_map(outcome) => Err(failed("unable to export multiple refs, missing platforms mapping")),
        None => {
            let platform = of_config(outcome.metadata.get("containerimage.config"))?.normalized();
            Ok(vec![(platform.to_string(), platform)])
        }
    }
}

/// Whether the frontend gave results by platform.
pub fn is_map(outcome: &Outcome) -> bool {
    matches!(&outcome.refs, Refs::Map(map) if !map.is_empty())
}

fn listed(json: &[u8]) -> Result<Named> {
    let listed: Listed = match json {
        [] => Listed::default(),
        json => {
            // `null` is a list of nothing, as Go reads it.
            let listed: Option<Listed> = serde_json::from_slice(json)
                .map_err(|e| failed(format!("failed to parse platforms passed to provenance processor: {e}")))?;
            listed.unwrap_or_default()
        }
    };
    if listed.platforms.is_empty() {
        return Err(failed("invalid empty platforms index for exporter"));
    }
    let named = |entry: Entry| {
        if entry.id.is_empty() {
            return Err(failed("invalid empty platform key for exporter"));
        }
        if entry.platform.os.is_empty() || entry.platform.architecture.is_empty() {
            return Err(failed(format!("invalid platform value {} for exporter", entry.platform)));
        }
        Ok((entry.id, entry.platform.normalized()))
    };
    listed.platforms.into_iter().map(named).collect()
}

/// What an image config says; this machine's where it is silent.
pub(crate) fn of_config(config: Option<&Bytes>) -> Result<Platform> {
    let Some(config) = config else { return Ok(Platform::host()) };
    #[derive(Deserialize, Default)]
    struct Named {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
    }
    let wrong = |e: serde_json::Error| failed(e.to_string());
    // That a config must not be `null` is for whoever exports it to say.
    let named = serde_json::from_slice::<Option<Named>>(config).map_err(wrong)?.unwrap_or_default();
    match (named.os.is_empty(), named.architecture.is_empty()) {
        (false, false) => serde_json::from_slice(config).map_err(wrong),
        // BuildKit goes on with a platform without a name here; this one at least can be exported.
        (true, true) => Ok(Platform::host()),
        _ => Err(failed("invalid image config: os and architecture must be specified together")),
    }
}

/// What a user ought to know where a result is not for the platforms that were asked for: the comma-separated `wanted`, this machine's where there
/// is none.
pub fn mismatches(wanted: Option<&str>, outcome: &Outcome) -> Result<Vec<String>> {
    if !outcome.metadata.contains_key("refs.platforms") {
        if is_map(outcome) {
            return Err(failed("build result contains multiple refs without platforms mapping"));
        }
        if outcome.all().iter().all(|(_, reference)| reference.is_none()) {
            return Ok(Vec::new());
        }
    }
    let found = of(outcome)?;
    let native = Platform::host().normalized().to_string();
    let wanted: Vec<&str> = wanted.map_or_else(|| vec![native.as_str()], |list| list.split(',').collect());
    let mut asked: Vec<Platform> = Vec::new();
    let mut warnings = Vec::new();
    for text in &wanted {
        match text.parse::<Platform>() {
            Ok(platform) => {
                let platform = platform.normalized();
                if asked.contains(&platform) {
                    warnings.push(format!("Duplicate platform result requested {text:?}"));
                } else {
                    asked.push(platform);
                }
            }
            Err(error) => warnings.push(format!("Invalid platform result requested {text:?}: {error}")),
        }
    }
    if !warnings.is_empty() {
        return Ok(warnings);
    }
    let list = |platforms: &mut dyn Iterator<Item = &Platform>| {
        let mut names: Vec<String> = platforms.map(ToString::to_string).collect();
        names.sort();
        names.join(",")
    };
    Ok(match (asked.as_slice(), found.as_slice()) {
        ([asked], [(_, found)]) => {
            let mut compared = found.clone();
            // A request seldom says which version of Windows.
            if asked.os_version.is_empty() {
                compared.os_version.clear();
            }
            let differs = *asked != *found && *asked != compared;
            differs.then(|| format!("Requested platform {:?} does not match result platform {:?}", wanted[0], compared.to_string()))
        }
        ([_, _, ..], _) if !is_map(outcome) => Some("Multiple platforms requested but result is not multi-platform".to_owned()),
        _ if asked.len() == found.len() && found.iter().all(|(_, platform)| asked.contains(platform)) => None,
        _ => Some(format!(
            "Requested platforms {} do not match result platforms {}",
            list(&mut asked.iter()),
            list(&mut found.iter().map(|(_, platform)| platform))
        )),
    }
    .into_iter()
    .collect())
}

fn failed(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn outcome(platforms: &str, is_map: bool) -> Outcome {
        let refs = if is_map { Refs::Map(BTreeMap::from([("linux/amd64".to_owned(), None)])) } else { Refs::Single(None) };
        let entry = |id: &str| {
            let platform: Platform = id.parse().unwrap();
            serde_json::json!({"ID": id, "Platform": platform})
        };
        let list: Vec<_> = platforms.split(',').filter(|p| !p.is_empty()).map(entry).collect();
        let json = serde_json::json!({"Platforms": list}).to_string();
        Outcome { refs, metadata: BTreeMap::from([("refs.platforms".to_owned(), json.into())]), ..Outcome::default() }
    }

    #[test]
    fn results_are_compared_with_the_request() {
        let warnings = |wanted: &str, found: &str, is_map| mismatches(Some(wanted), &outcome(found, is_map)).unwrap().join(";");
        for (wanted, found, is_map, want) in [
            ("linux/amd64", "linux/amd64", false, ""),
            ("linux/arm64/v8", "linux/arm64", false, ""),
            ("linux/amd64", "linux/arm64", false, "Requested platform \"linux/amd64\" does not match result platform \"linux/arm64\""),
            ("linux/amd64,linux/arm64", "linux/amd64", false, "Multiple platforms requested but result is not multi-platform"),
            ("linux/amd64,linux/arm64", "linux/arm64,linux/amd64", true, ""),
            (
                "linux/arm64,linux/amd64",
                "linux/s390x,linux/amd64",
                true,
                "Requested platforms linux/amd64,linux/arm64 do not match result platforms linux/amd64,linux/s390x",
            ),
            ("linux/amd64,linux/amd64", "linux/amd64", false, "Duplicate platform result requested \"linux/amd64\""),
        ] {
            assert_eq!(warnings(wanted, found, is_map), want, "{wanted} {found}");
        }
        assert!(warnings("linux/a/b/c/d", "linux/amd64", false).starts_with("Invalid platform result requested \"linux/a/b/c/d\": "));
    }

    #[test]
    fn bad_lists_are_named() {
        assert_eq!(of(&outcome("", false)).unwrap_err().to_string(), "invalid empty platforms index for exporter");
        let of_json = |key: &str, json: &'static str| {
            let metadata = BTreeMap::from([(key.to_owned(), json.into())]);
            of(&Outcome { metadata, ..Outcome::default() })
        };
        assert_eq!(of_json("refs.platforms", "null").unwrap_err().to_string(), "invalid empty platforms index for exporter");
        assert_eq!(of_json("containerimage.config", "null").unwrap().len(), 1, "exporters say what is wrong with it");
        let mut none = outcome("linux/amd64", true);
        none.metadata.clear();
        assert_eq!(of(&none).unwrap_err().to_string(), "unable to export multiple refs, missing platforms mapping");
        let config = br#"{"os":"linux"}"#;
        let half =
            Outcome { metadata: BTreeMap::from([("containerimage.config".to_owned(), config.as_slice().into())]), ..Outcome::default() };
        assert_eq!(of(&half).unwrap_err().to_string(), "invalid image config: os and architecture must be specified together");
    }
}
