//! Generated messages and service stubs, nothing else.
//!
//! The sources are the files of `proto/`, one a wire package; `cargo xtask codegen` writes `src/generated` and
//! `cargo xtask codegen --check` (part of `cargo xtask check`) proves that it is current. Modules mirror wire packages, because
//! generated code refers to its neighbours by those paths.
//!
//! Messages do not travel above `llb`, `grpc` and `client`.
#![allow(clippy::all, missing_docs, rustdoc::all)]

/// All of them as protobuf describes itself, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

pub mod containerd {
    pub mod services {
        pub mod content {
            pub mod v1 {
                include!("generated/containerd.services.content.v1.rs");
            }
        }
    }
}
pub mod errdefs {
    include!("generated/errdefs.rs");
}
pub mod fsutil {
    pub mod types {
        include!("generated/fsutil.types.rs");
    }
}
pub mod google {
    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}
pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!("generated/grpc.health.v1.rs");
        }
    }
}
pub mod moby {
    pub mod buildkit {
        pub mod secrets {
            pub mod v1 {
                include!("generated/moby.buildkit.secrets.v1.rs");
            }
        }
        pub mod v1 {
            include!("generated/moby.buildkit.v1.rs");
            pub mod apicaps {
                include!("generated/moby.buildkit.v1.apicaps.rs");
            }
            pub mod frontend {
                include!("generated/moby.buildkit.v1.frontend.rs");
            }
            pub mod sourcepolicy {
                include!("generated/moby.buildkit.v1.sourcepolicy.rs");
                pub mod policysession {
                    include!("generated/moby.buildkit.v1.sourcepolicy.policysession.rs");
                }
            }
            pub mod types {
                include!("generated/moby.buildkit.v1.types.rs");
            }
        }
    }
    pub mod exporter {
        pub mod v1 {
            include!("generated/moby.exporter.v1.rs");
        }
    }
    pub mod filesync {
        pub mod v1 {
            include!("generated/moby.filesync.v1.rs");
        }
    }
    pub mod sshforward {
        pub mod v1 {
            include!("generated/moby.sshforward.v1.rs");
        }
    }
    pub mod upload {
        pub mod v1 {
            include!("generated/moby.upload.v1.rs");
        }
    }
}
pub mod opentelemetry {
    pub mod proto {
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    include!("generated/opentelemetry.proto.collector.trace.v1.rs");
                }
            }
        }
        pub mod common {
            pub mod v1 {
                include!("generated/opentelemetry.proto.common.v1.rs");
            }
        }
        pub mod resource {
            pub mod v1 {
                include!("generated/opentelemetry.proto.resource.v1.rs");
            }
        }
        pub mod trace {
            pub mod v1 {
                include!("generated/opentelemetry.proto.trace.v1.rs");
            }
        }
    }
}
pub mod pb {
    include!("generated/pb.rs");
}
pub mod stack {
    include!("generated/stack.rs");
}
