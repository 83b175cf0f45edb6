//! The image config on its way out: the frontend's config with the real layers, a complete history and clamped times.
use std::collections::BTreeMap;

use base64::Engine as _;
use fault::{Fault, Result};
use oci::{Digest, History, ImageConfig, Platform, Timestamp, gojson};
use serde::Serialize;
use serde_json::value::RawValue;

/// What a layer's own record tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    pub diff_id: Digest,
    pub created: Option<Timestamp>,
    pub description: String,
}

/// What goes into a config beside the layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patch<'a> {
    /// The config of the base image.
    pub base: Option<&'a [u8]>,
    /// Seconds since 1970.
    pub epoch: Option<i64>,
    pub inline_cache: Option<&'a [u8]>,
}

const COMMENT: &str = "buildkit.exporter.image.v0";
const INLINE_CACHE: &str = "moby.buildkit.cache.v0";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config of a result whose frontend gave none.
pub fn default_config() -> Vec<u8> {
    let mut config = ImageConfig::default();
    config.set_platform(&Platform::host());
    config.rootfs.kind = "layers".into();
    config.config.working_dir = "/".into();
    config.config.env = vec![DEFAULT_PATH.into()];
    config.to_bytes()
}

/// Unknown keys of the config stay as they were written, but for space between words; top-level keys come out sorted.
pub fn patch(config: &[u8], layers: &[LayerFacts], patch: Patch<'_>) -> Result<Vec<u8>> {
    // The history is what BuildKit reads first.
    let invalid = |e: serde_json::Error| Fault::invalid(format!("failed to unmarshal history from config: {e}"));
    let object: Option<BTreeMap<String, Box<RawValue>>> = serde_json::from_slice(config).map_err(invalid)?;
    let Some(object) = object else { return Err(Fault::invalid("invalid null image config for export")) };
    let typed = ImageConfig::parse(config).map_err(|e| Fault::invalid(format!("invalid image config for export: {}", fault::chain(&e))))?;
    if typed.os.is_empty() {
        return Err(Fault::invalid("invalid image config for export: missing os"));
    }
    if typed.architecture.is_empty() {
        return Err(Fault::invalid("invalid image config for export: missing architecture"));
    }
    let epoch = patch.epoch.map(|seconds| Timestamp::from_unix(seconds, 0));

    let mut history = complete(typed.history, layers);
    if let Some(epoch) = epoch {
        clamp(&mut history, &base_history(patch.base)?, epoch);
    }
    let mut out: BTreeMap<String, String> = object.iter().map(|(key, value)| (key.clone(), gojson::compact(value.get()))).collect();
    if !object.contains_key("created") {
        out.insert("created".into(), json(&history.iter().rev().find_map(|entry| entry.created)));
    } else if let (Some(epoch), Some(created)) = (epoch, typed.created)
        && created > epoch
    {
        out.insert("created".into(), json(&epoch));
    }
    let diff_ids: Vec<&Digest> = layers.iter().map(|l| &l.diff_id).collect();
    out.insert("rootfs".into(), json(&RootFs { kind: "layers", diff_ids: (!diff_ids.is_empty()).then_some(diff_ids) }));
    let given = object.get("history").is_some_and(|h| h.get() != "null");
    out.insert("history".into(), json(&(given || !history.is_empty()).then_some(history)));
    if let Some(cache) = patch.inline_cache {
        out.insert(INLINE_CACHE.into(), json(&base64::engine::general_purpose::STANDARD.encode(cache)));
    }
    let fields: Vec<String> = out.iter().map(|(key, value)| format!("{}:{value}", json(key))).collect();
    Ok(format!("{{{}}}", fields.join(",")).into_bytes())
}

#[derive(Serialize)]
struct RootFs<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Option<Vec<&'a Digest>>,
}

fn json<T: Serialize + ?Sized>(value: &T) -> String {
    gojson::to_string(value)
}

fn base_history(base: Option<&[u8]>) -> Result<Vec<History>> {
    let Some(base) = base.filter(|b| !b.is_empty()) else { return Ok(Vec::new()) };
    let config =
        ImageConfig::parse(base).map_err(|e| Fault::invalid(format!("failed to unmarshal base image config: {}", fault::chain(&e))))?;
    Ok(config.history)
}

/// One history entry that is not empty for each layer, each with a time.
fn complete(mut history: Vec<History>, layers: &[LayerFacts]) -> Vec<History> {
    let mut claimed = 0;
    for entry in &mut history {
        if claimed >= layers.len() {
            entry.empty_layer = true;
        }
        claimed += usize::from(!entry.empty_layer);
    }
    for layer in &layers[claimed..] {
        let created_by = if layer.description.is_empty() { "created by buildkit".into() } else { layer.description.clone() };
        history.push(History { created: layer.created, created_by, comment: COMMENT.into(), ..History::default() });
    }
    for (entry, layer) in history.iter_mut().filter(|e| !e.empty_layer).zip(layers) {
        entry.created = entry.created.or(layer.created);
    }
    fill_gaps(&mut history);
    history
}

/// Entries without a time get that of the first new layer after them, or else that of the entry before.
fn fill_gaps(history: &mut [History]) {
    let mut created = None;
    let mut gap = false;
    for entry in history.iter() {
        if entry.created.is_some() {
            created = entry.created;
            if gap {
                break;
            }
        } else {
            gap = true;
        }
    }
    gap = false;
    for entry in history {
        match entry.created {
            Some(time) if gap => created = Some(time),
            Some(_) => {}
            None => {
                gap = true;
                entry.created = created;
            }
        }
    }
}

/// Entries that the base image has just so keep their times.
fn clamp(history: &mut [History], base: &[History], epoch: Timestamp) {
    let shared = history.iter().zip(base).take_while(|(own, base)| own == base).count();
    for entry in &mut history[shared..] {
        entry.created = Some(entry.created.filter(|time| *time <= epoch).unwrap_or(epoch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn facts(text: &str, seconds: i64) -> LayerFacts {
        LayerFacts { diff_id: Digest::of(text), created: Some(Timestamp::from_unix(seconds, 0)), description: format!("made {text}") }
    }

    fn patched(config: &[u8], layers: &[LayerFacts], with: Patch<'_>) -> Value {
        serde_json::from_slice(&patch(config, layers, with).unwrap()).unwrap()
    }

    #[test]
    fn history_is_completed() {
        let config = br#"{"os":"linux","architecture":"amd64","history":[{"created_by":"one"},{"created_by":"env","empty_layer":true}]}"#;
        let out = patched(config, &[facts("a", 10), facts("b", 20)], Patch::default());
        let times: Vec<_> = out["history"].as_array().unwrap().iter().map(|h| h["created"].as_str().unwrap()).collect();
        assert_eq!(times, ["1970-01-01T00:00:10Z", "1970-01-01T00:00:20Z", "1970-01-01T00:00:20Z"]);
        assert_eq!(out["history"][2]["comment"], COMMENT);
        assert_eq!(out["history"][2]["created_by"], "made b");
        assert_eq!(out["created"], "1970-01-01T00:00:20Z");
    }

    #[test]
    fn what_is_not_ours_keeps_its_bytes() {
        let config = "{ \"os\":\"linux\", \"zzz\" : {\"b\": 1.0, \"a\" : \"x < \\\" y\\u00e9\", \"n\": 12345678901234567890123},\n\"architecture\":\"amd64\"}";
        let out = patch(config.as_bytes(), &[], Patch { inline_cache: Some(b"{}"), ..Patch::default() }).unwrap();
        let want = concat!(
            r#"{"architecture":"amd64","created":null,"history":null,"moby.buildkit.cache.v0":"e30=","os":"linux","#,
            r#""rootfs":{"type":"layers","diff_ids":null},"zzz":{"b":1.0,"a":"x \u003c \" y\u00e9","n":12345678901234567890123}}"#
        );
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn an_epoch_clamps_all_but_the_base() {
        let base = br#"{"os":"linux","architecture":"amd64","history":[{"created":"2030-01-01T00:00:00Z","created_by":"base"}]}"#;
        let config = br#"{"os":"linux","architecture":"amd64","created":"2040-01-01T00:00:00Z","history":[{"created":"2030-01-01T00:00:00Z","created_by":"base"},{"created_by":"new"}]}"#;
        let layers = [facts("a", 1), facts("b", 4_000_000_000)];
        let out = patched(config, &layers, Patch { base: Some(base), epoch: Some(100), inline_cache: None });
        assert_eq!(out["history"][0]["created"], "2030-01-01T00:00:00Z");
        assert_eq!(out["history"][1]["created"], "1970-01-01T00:01:40Z");
        assert_eq!(out["created"], "1970-01-01T00:01:40Z");
    }

    #[test]
    fn surplus_history_becomes_empty_and_bad_configs_are_named() {
        let config = br#"{"os":"linux","architecture":"amd64","history":[{"created_by":"one"},{"created_by":"two"}]}"#;
        let out = patched(config, &[facts("a", 1)], Patch::default());
        assert_eq!(out["history"][1]["empty_layer"], true);
        for (bad, why) in [
            ("null", "invalid null image config for export"),
            ("{}", "missing os"),
            (r#"{"os":"linux"}"#, "missing architecture"),
            ("[", "failed to unmarshal history from config: "),
            (r#"{"os":7}"#, "invalid image config for export: "),
        ] {
            assert!(patch(bad.as_bytes(), &[], Patch::default()).unwrap_err().to_string().contains(why), "{bad}");
        }
    }

    #[test]
    fn the_default_config_can_be_exported() {
        let out = patched(&default_config(), &[], Patch::default());
        assert_eq!(out["config"], serde_json::json!({"Env": [DEFAULT_PATH], "WorkingDir": "/"}));
    }
}
