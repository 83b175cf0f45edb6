//! What a process finds in its environment: variables in their fixed order, and more lines for the hosts file.
use std::net::IpAddr;

use fault::{Fault, Kind};
use llb::{HostIp, Meta, SecretEnv};
use session::Group;

/// The default `PATH`.
pub const UNIX_PATH: (&str, &str) = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
/// The default `PATH` where the platform is Windows.
pub const WINDOWS_PATH: (&str, &str) = ("PATH", "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0");

/// The process's own variables, the proxy's in both cases, those of `defaults` that it has not, then secrets.
pub async fn variables(meta: &Meta, secrets: &[SecretEnv], defaults: &[(&str, &str)], sessions: &Group) -> fault::Result<Vec<String>> {
    let mut env = meta.env.clone();
    if let Some(proxy) = &meta.proxy_env {
        for (name, value) in [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ] {
            if !value.is_empty() {
                env.push(format!("{name}={value}"));
                env.push(format!("{}={value}", name.to_lowercase()));
            }
        }
    }
    for (name, value) in defaults {
        if !env.iter().any(|v| v.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))) {
            env.push(format!("{name}={value}"));
        }
    }
    for secret in secrets {
        match find_secret(sessions, &secret.id).await? {
            Some(value) => {
                let text = String::from_utf8(value.to_vec())
                    .map_err(|_| Fault::new(Kind::Invalid, format!("secret {} is not text, so it cannot be a variable", secret.id)))?;
                env.push(format!("{}={text}", secret.name));
            }
            None if secret.optional => {}
            None => return Err(missing_secret(&secret.id)),
        }
    }
    Ok(env)
}

/// The first session that has the secret gives it.
pub async fn find_secret(sessions: &Group, id: &str) -> fault::Result<Option<bytes::Bytes>> {
    for session in sessions.all() {
        if let Some(value) = session.secret(id).await? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

pub fn missing_secret(id: &str) -> Fault {
    Fault::new(Kind::NotFound, format!("secret {id}: not found"))
}

pub fn hosts(extra: &[HostIp]) -> fault::Result<Vec<(String, IpAddr)>> {
    extra
        .iter()
        .map(|entry| {
            let address =
                entry.ip.parse().map_err(|_| Fault::invalid(format!("invalid IP address {:?} for host {}", entry.ip, entry.host)))?;
            Ok((entry.host.clone(), address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use llb::ProxyEnv;

    use super::*;

    #[tokio::test]
    async fn order_is_own_proxy_path() {
        let proxy = ProxyEnv { http_proxy: "http://p".into(), ..ProxyEnv::default() };
        let meta = Meta { env: vec!["A=1".into()], proxy_env: Some(proxy), ..Meta::default() };
        let defaults = [("A", "2"), ("PATH", "/bin")];
        let env = variables(&meta, &[], &defaults, &Group::default()).await.unwrap();
        assert_eq!(env, ["A=1", "HTTP_PROXY=http://p", "http_proxy=http://p", "PATH=/bin"]);
    }
}
