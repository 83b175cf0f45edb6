//! The versions that kiln tells: to clients it is a BuildKit of the release whose surface it implements.

pub const PACKAGE: &str = "github.com/kiln-build/kiln";
/// The upstream release, with kiln's own version as build metadata.
pub const VERSION: &str = concat!("v0.32.0+kiln.", env!("CARGO_PKG_VERSION"));
/// The release of the Dockerfile frontend that belongs to it.
pub const DOCKERFILE: &str = "1.26.0";

/// Never empty: drivers split the line at blanks and take the third field of four.
pub fn revision() -> &'static str {
    option_env!("KILN_REVISION").unwrap_or("unknown")
}

/// What `--version` prints for a program of this name.
pub fn line(program: &str) -> String {
    format!("{} {PACKAGE} {VERSION} {}", program.replace(' ', "-"), revision())
}
