//! The image config that a stage leaves.
use oci::{History, ImageConfig, Platform, RootFs, Timestamp};

pub(super) fn default_path(os: &str) -> &'static str {
    match os {
        "windows" => "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0",
        _ => "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
}

/// What `FROM scratch` begins with.
pub(super) fn empty(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig { rootfs: RootFs { kind: "layers".into(), diff_ids: Vec::new() }, ..ImageConfig::default() };
    image.set_platform(platform);
    image.config.working_dir = "/".into();
    if platform.os != "windows" {
        image.config.env = vec![format!("PATH={}", default_path(&platform.os))];
    }
    image
}

/// In place, or at the end.
pub(super) fn set_env(image: &mut ImageConfig, key: &str, value: &str) {
    let entry = format!("{key}={value}");
    match image.config.env.iter_mut().find(|known| split_env(known).0 == key) {
        Some(known) => *known = entry,
        None => image.config.env.push(entry),
    }
}

pub(super) fn split_env(entry: &str) -> (&str, &str) {
    entry.split_once('=').unwrap_or((entry, ""))
}

/// A shell form as the shell's own arguments.
pub(super) fn with_shell(image: &ImageConfig, args: &[String]) -> Vec<String> {
    let mut line = match image.config.shell.as_slice() {
        [] if image.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        [] => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        shell => shell.to_vec(),
    };
    line.push(args.join(" "));
    line
}

pub(super) fn commit(image: &mut ImageConfig, created_by: String, layer: bool, epoch: Option<Timestamp>) {
    image.history.push(History {
        created: epoch,
        created_by,
        comment: "buildkit.dockerfile.v0".into(),
        empty_layer: !layer,
        ..History::default()
    });
}

/// The explicitly wanted platform wins over what the base image says.
pub(super) fn set_target(image: &mut ImageConfig, target: &Platform) {
    let same = target.os == image.os && target.architecture == image.architecture;
    image.os = target.os.clone();
    image.architecture = target.architecture.clone();
    if !target.variant.is_empty() || !same {
        image.variant = target.variant.clone();
    }
    if !target.os_version.is_empty() || !same {
        image.os_version = target.os_version.clone();
    }
    if !target.os_features.is_empty() {
        image.os_features = target.os_features.clone();
    }
}

/// As Go prints a duration: `1m30s`, `1.5ms`, `0s`.
pub(super) fn duration(nanos: i64) -> String {
    let (sign, n) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = |value: u64, unit: u64, name: &str| {
        let digits = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        let dot = if digits.is_empty() || unit == 1 { "" } else { "." };
        format!("{}{dot}{}{name}", value / unit, if unit == 1 { "" } else { digits })
    };
    let text = match n {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => fraction(n, 1_000, "µs"),
        n if n < 1_000_000_000 => fraction(n, 1_000_000, "ms"),
        n => {
            let minutes = n / 60_000_000_000;
            let seconds = fraction(n % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_print_like_go() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_250_000_000, "1.25s"),
        ] {
            assert_eq!(duration(nanos), want);
        }
    }
}
