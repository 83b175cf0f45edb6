//! RPM's database of installed packages, in each of the forms it has had: SQLite (Fedora 33, RHEL 9 and later), RPM's own (SUSE), and Berkeley DB (RHEL 8
//! and before). All hold the same headers, one for each package.
mod berkeley;
mod header;
mod native;
mod pages;
mod sqlite;

use std::io::{Read, Seek};

use crate::package::Package;
use crate::release::Release;
use crate::rpm::header::Header;
use crate::rpm::pages::Bytes;

/// Where the database is, in any of its forms.
const PLACES: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
const NAMES: [&str; 3] = ["rpmdb.sqlite", "Packages.db", "Packages"];
/// What SQLite has not yet moved into the database.
const LOG: &str = "rpmdb.sqlite-wal";

pub(crate) fn is_database(directory: &str, name: &str) -> bool {
    PLACES.contains(&directory) && NAMES.contains(&name)
}

pub(crate) fn is_log(directory: &str, name: &str) -> bool {
    PLACES.contains(&directory) && name == LOG
}

#[derive(Debug, thiserror::Error)]
pub enum RpmError {
    #[error("cannot read it")]
    Io(#[from] std::io::Error),
    #[error("none of the forms that RPM databases have")]
    Form,
    #[error("{0}")]
    Damaged(&'static str),
}

/// The packages of a database, in its order. Reads no more than the file has bytes, and nothing twice.
pub(crate) fn parse<R: Read + Seek>(file: &mut R, release: &Release) -> Result<Vec<Package>, RpmError> {
    let mut packages = Vec::new();
    let mut each = |blob: &[u8]| {
        let header = Header::parse(blob).ok_or(RpmError::Damaged("a package's header is damaged"))?;
        packages.extend(package(&header, release));
        Ok(())
    };
    let mut bytes = Bytes::new(file)?;
    let start = bytes.at_most(0, 16)?;
    if start == sqlite::MAGIC {
        sqlite::each(bytes, &mut each)?;
    } else if start.starts_with(native::MAGIC) {
        native::each(bytes, &mut each)?;
    } else if let Some(order) = berkeley::order(&start) {
        berkeley::each(bytes, order, &mut each)?;
    } else {
        return Err(RpmError::Form);
    }
    Ok(packages)
}

/// `None` for what has no name.
fn package(header: &Header, release: &Release) -> Option<Package> {
    let text = |tag| header.text(tag).unwrap_or_default();
    let version = format!("{}-{}", text(header::VERSION), text(header::RELEASE));
    let mut package = Package::new("rpm", header.text(header::NAME)?, version);
    package.namespace = namespace(&release.id).to_owned();
    package.license = text(header::LICENSE);
    package.supplier = text(header::VENDOR);
    package.qualify("arch", text(header::ARCH));
    package.qualify("distro", release.distro());
    package.qualify("epoch", header.number(header::EPOCH).map(|epoch| epoch.to_string()).unwrap_or_default());
    package.qualify("upstream", text(header::SOURCE));
    Some(package)
}

/// As package URLs call who makes a system.
fn namespace(system: &str) -> &str {
    match system {
        "rhel" => "redhat",
        system if system.starts_with("opensuse") => "opensuse",
        system => system,
    }
}

#[cfg(test)]
mod tests;
