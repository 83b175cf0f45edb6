//! What a build may do beyond the sandbox: granted by the operator and by the client, both.
use fault::{Fault, Kind, Result};
use llb::{ExecOp, NetMode, SecurityMode};

/// The entitlements of one build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    network_host: bool,
    security_insecure: bool,
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
                "device" => {}
                _ => return Err(Fault::invalid(format!("unknown entitlement {entry}"))),
            }
            if !allowed.iter().any(|a| a == name) {
                return Err(Fault::new(Kind::Denied, format!("granting entitlement {name} is not allowed by build daemon configuration")));
            }
        }
        Ok(granted)
    }

    pub fn check(&self, op: &ExecOp) -> Result<()> {
        self.check_modes(op.network, op.security)?;
        if let Some(device) = op.cdi_devices.iter().find(|d| !d.optional) {
            return Err(Fault::new(Kind::Denied, format!("device {} is requested by the build but not allowed", device.name)));
        }
        Ok(())
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
        assert!(Granted::new(&[], &words(&["network.host"])).unwrap().check(&host).is_err());
        assert!(Granted::new(&words(&["network.host"]), &[]).is_err());
        assert!(Granted::new(&words(&["network.host"]), &words(&["network.host"])).unwrap().check(&host).is_ok());
        assert!(Granted::new(&words(&["nonsense"]), &[]).is_err());
    }
}
