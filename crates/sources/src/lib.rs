//! Image, git, http, local, oci-layout and blob sources: pin a name, then fetch into a layer.
