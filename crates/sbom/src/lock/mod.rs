//! What the package managers of languages write down of their choices.
pub(crate) mod go;
mod javascript;
mod php;
mod python;
mod ruby;
mod rust;

use crate::package::Package;

/// A file that is not what its name says.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("not JSON of the expected form")]
    Json(#[from] serde_json::Error),
    #[error("not TOML of the expected form")]
    Toml(#[from] toml::de::Error),
    #[error("no {what}")]
    Form { what: &'static str },
}

pub(crate) type Reader = fn(&str) -> Result<Vec<Package>, LockError>;

/// What reads the file of this name, in a directory of that name.
pub(crate) fn reader(directory: &str, name: &str) -> Option<Reader> {
    Some(match name {
        "package-lock.json" | ".package-lock.json" | "npm-shrinkwrap.json" => javascript::npm,
        "yarn.lock" => javascript::yarn,
        "Cargo.lock" => rust::cargo,
        "go.mod" => go::requirements,
        "poetry.lock" | "uv.lock" | "pdm.lock" => python::locked,
        "Pipfile.lock" => python::pipfile,
        "requirements.txt" => python::requirements,
        "METADATA" if directory.ends_with(".dist-info") => python::installed,
        "PKG-INFO" if directory.ends_with(".egg-info") => python::installed,
        "Gemfile.lock" => ruby::bundler,
        "composer.lock" => php::composer,
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) fn urls(read: Reader, text: &str) -> Vec<String> {
    read(text).unwrap_or_else(|error| panic!("{error}")).iter().map(crate::package::purl).collect()
}
