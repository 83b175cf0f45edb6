//! EXPOSE: `[ip:][host:]port[-port][/protocol]`, of which only port and protocol count.
use crate::lint::{self, Linter};
use crate::text::quote;
use crate::{Error, Lines, Result};

/// `80/tcp`, ranges spelt out.
pub(super) fn ports(words: &[String], lines: Lines, linter: &Linter) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for word in words {
        all.extend(port(word, lines, linter)?);
    }
    Ok(all)
}

fn port(raw: &str, lines: Lines, linter: &Linter) -> Result<Vec<String>> {
    let (ip, host, container) = parts(raw);
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    let invalid = |why: String| Error::new(format!("invalid port: {}: {why}", quote(raw)));
    if container.is_empty() {
        return Err(invalid("no port specified".into()));
    }
    let lower = match protocol.to_lowercase() {
        lower if lower.is_empty() => "tcp".to_owned(),
        lower if matches!(lower.as_str(), "tcp" | "udp" | "sctp") => lower,
        _ => return Err(invalid(format!("invalid proto: {protocol}"))),
    };
    if !protocol.is_empty() && protocol != lower {
        linter.warn(&lint::EXPOSE_PROTO_CASING, lines, || format!("Defined protocol '{raw}' in EXPOSE instruction should be lowercase"));
    }
    if !ip.is_empty() || !host.is_empty() {
        linter.warn(&lint::EXPOSE_INVALID_FORMAT, lines, || {
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{raw}'")
        });
    }
    let address = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(Error::new(format!("invalid IP address: {address}")));
    }
    let (first, last) = range(container).ok_or_else(|| Error::new(format!("invalid containerPort: {container}")))?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host).ok_or_else(|| Error::new(format!("invalid hostPort: {host}")))?;
        if last - first != host_last - host_first && first != last {
            return Err(Error::new(format!("invalid ranges specified for container and host Ports: {container} and {host}")));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{lower}")).collect())
}

fn parts(raw: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = raw.rsplit_once(':') else { return ("", "", raw) };
    match rest.rsplit_once(':') {
        Some((ip, host)) => (ip, host, container),
        None => ("", rest, container),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports() {
        let read = |raw: &str| port(raw, Lines::single(1), &Linter::silent()).map_err(|e| e.to_string());
        for (raw, want) in [
            ("80", vec!["80/tcp"]),
            ("80/UDP", vec!["80/udp"]),
            ("8000-8002/tcp", vec!["8000/tcp", "8001/tcp", "8002/tcp"]),
            ("127.0.0.1:90:80", vec!["80/tcp"]),
            ("[::1]:90:80", vec!["80/tcp"]),
            ("90-99:80", vec!["80/tcp"]),
        ] {
            assert_eq!(read(raw).unwrap(), want, "{raw}");
        }
        for (raw, want) in [
            ("", "invalid port: \"\": no port specified"),
            ("/tcp", "invalid port: \"/tcp\": no port specified"),
            ("80/x", "invalid port: \"80/x\": invalid proto: x"),
            ("x", "invalid containerPort: x"),
            ("70000", "invalid containerPort: 70000"),
            ("9-1", "invalid containerPort: 9-1"),
            ("x:80", "invalid hostPort: x"),
            ("a:1:80", "invalid IP address: a"),
            ("1-2:8-10", "invalid ranges specified for container and host Ports: 8-10 and 1-2"),
        ] {
            assert_eq!(read(raw).unwrap_err(), want, "{raw}");
        }
    }
}
