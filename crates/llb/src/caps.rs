//! The capability ids that definitions may rely on.
use crate::types::Graph;

/// A capability that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown API capability {id}")]
pub struct CapError {
    pub id: String,
}

impl Graph {
    /// Fails on the first capability that some vertex asks for and [`CAPABILITIES`] does not list.
    pub fn check_capabilities(&self) -> Result<(), CapError> {
        let asked = self.vertices.iter().flat_map(|v| v.metadata.caps.keys());
        match asked.into_iter().find(|id| CAPABILITIES.binary_search(&id.as_str()).is_err()) {
            Some(id) => Err(CapError { id: id.clone() }),
            None => Ok(()),
        }
    }
}

/// All ids of the LLB capability set, sorted; every one is enabled. The misspelt `soruce` is on the wire.
pub const CAPABILITIES: &[&str] = &[
    "cache.azblob",
    "cache.gha",
    "cache.s3",
    "constraints",
    "diffop",
    "exec.cgroup",
    "exec.meta.base",
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.network.proxy",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.content",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.secretenv",
    "exec.validexitcode",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.multiple",
    "exporter.session",
    "exporter.sourcedateepoch",
    "file.base",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.rm.wildcard",
    "file.symlink.create",
    "gc.freespacefilter",
    "history.filter",
    "mergeop",
    "meta.description",
    "meta.exportcache",
    "meta.ignorecache",
    "passthroughop",
    "platform",
    "soruce.http.uidgid",
    "source.buildop.llbfilename",
    "source.git",
    "source.git.bundle",
    "source.git.checkoutbundle",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.signatureverify",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    "source.http.signatureverify",
    "source.image",
    "source.image.checksum",
    "source.image.layerlimit",
    "source.image.resolvemode",
    "source.imageblob",
    "source.local",
    "source.local.differ",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.includepatterns",
    "source.local.metadatatransfer",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
    "source.ocilayout",
    "source.policy",
    "source.policy.session",
];

#[cfg(test)]
mod tests {
    #[test]
    fn are_sorted_for_look_up() {
        assert!(super::CAPABILITIES.is_sorted());
    }
}
