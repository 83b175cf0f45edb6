//! What a build may do beyond the sandbox: granted by the operator and by the client, both.
use fault::{Fault, Kind, Result};
use llb::{CdiDevice, ExecOp, NetMode, SecurityMode};
use worker::Devices;

/// The entitlements of one build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    network_host: bool,
    security_insecure: bool,
    all_devices: bool,
    /// As they were granted: by name, kind or class.
    devices: Vec<String>,
}

impl Granted {
    /// What the client asks for, as far as the operator allows it.
    pub fn new(asked: &[String], allowed: &[String]) -> Result<Self> {
        let mut granted = Self::default();
        for entry in asked {
            let name = entry.split('=').next().unwrap_or_default();
            match name {
                "network.host" => granted.network_host = true,
                "security.insecure" => granted.security_insecure = true,
                "device" => granted.grant_device(entry)?,
                _ => return Err(Fault::invalid(format!("unknown entitlement {entry}"))),
            }
            if !allowed.iter().any(|a| a == name) {
                return Err(Fault::new(Kind::Denied, format!("granting entitlement {name} is not allowed by build daemon configuration")));
            }
        }
        Ok(granted)
    }

    /// `device`, or `device=NAME`.
    fn grant_device(&mut self, entry: &str) -> Result<()> {
        let Some((_, device)) = entry.split_once('=').filter(|(_, device)| !device.is_empty()) else {
            self.all_devices = true;
            return Ok(());
        };
        let mut fields = device.split(',');
        self.devices.extend(fields.next().map(str::to_owned));
        match fields.next().map(|field| field.split_once('=').ok_or(field)) {
            None => Ok(()),
            Some(Ok(("alias", _))) => {
                Err(Fault::new(Kind::Unimplemented, format!("{entry}: devices cannot be granted under another name")))
            }
            Some(Ok((key, _))) => Err(Fault::invalid(format!("unknown device config key {key:?}"))),
            Some(Err(field)) => Err(Fault::invalid(format!("invalid device config {field:?}"))),
        }
    }

    pub fn check(&self, op: &ExecOp, known: &Devices) -> Result<()> {
        self.check_modes(op.network, op.security)?;
        if op.cdi_devices.is_empty() || self.all_devices {
            return Ok(());
        }
        let asked = known.find(&op.cdi_devices)?;
        let granted: Vec<CdiDevice> = self.devices.iter().map(|name| CdiDevice { name: name.clone(), optional: false }).collect();
        let granted = known.find(&granted)?;
        let forbidden: Vec<&str> = asked.iter().filter(|d| !d.auto_allow && !granted.contains(d)).map(|d| d.name.as_str()).collect();
        match forbidden.as_slice() {
            [] => Ok(()),
            [one] => Err(Fault::new(Kind::Denied, format!("device {one} is requested by the build but not allowed"))),
            more => Err(Fault::new(Kind::Denied, format!("devices {} are requested by the build but not allowed", more.join(", ")))),
        }
    }

    pub fn check_modes(&self, network: NetMode, security: SecurityMode) -> Result<()> {
        let denied = |name: &str| Err(Fault::new(Kind::Denied, format!("{name} is not allowed")));
        if network == NetMode::Host && !self.network_host {
            return denied("network.host");
        }
        if security == SecurityMode::Insecure && !self.security_insecure {
            return denied("security.insecure");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_must_grant() {
        let words = |list: &[&str]| list.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let host = ExecOp { network: NetMode::Host, ..ExecOp::default() };
        let none = Devices::default();
        assert!(Granted::new(&[], &words(&["network.host"])).unwrap().check(&host, &none).is_err());
        assert!(Granted::new(&words(&["network.host"]), &[]).is_err());
        assert!(Granted::new(&words(&["network.host"]), &words(&["network.host"])).unwrap().check(&host, &none).is_ok());
        assert!(Granted::new(&words(&["nonsense"]), &[]).is_err());
    }

    #[test]
    fn devices_are_granted_by_the_client_or_allowed_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let file = r#"{"cdiVersion": "0.6.0", "kind": "a.com/d", "devices": [{"name": "x", "containerEdits": {}}, {"name": "y", "containerEdits": {}},
            {"name": "free", "containerEdits": {}, "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}}]}"#;
        std::fs::write(dir.path().join("a.json"), file).unwrap();
        let known = Devices { dirs: vec![dir.path().to_owned()], ..Devices::default() };
        let checked = |granted: &[&str], asked: &[&str]| {
            let granted: Vec<String> = granted.iter().map(|&g| g.to_owned()).collect();
            let cdi_devices = asked.iter().map(|&name| CdiDevice { name: name.to_owned(), optional: false }).collect();
            let granted = Granted::new(&granted, &["device".to_owned()])?;
            granted.check(&ExecOp { cdi_devices, ..ExecOp::default() }, &known)
        };
        assert!(checked(&[], &["a.com/d=free"]).is_ok());
        assert!(checked(&["device"], &["a.com/d=x"]).is_ok() && checked(&["device=a.com/d=x"], &["a.com/d=x"]).is_ok());
        assert!(checked(&["device=a.com/d=*"], &["a.com/d=y"]).is_ok());
        let said = |granted: &[&str], asked: &[&str]| checked(granted, asked).unwrap_err().to_string();
        assert_eq!(said(&[], &["a.com/d=*"]), "devices a.com/d=x, a.com/d=y are requested by the build but not allowed");
        assert_eq!(said(&["device=a.com/d=x"], &["a.com/d=y"]), "device a.com/d=y is requested by the build but not allowed");
        assert!(said(&["device=a.com/d=x,alias=z"], &[]).contains("under another name"));
        assert_eq!(said(&["device=a.com/d=x,key=z"], &[]), "unknown device config key \"key\"");
    }
}
