//! One build as the history tells it.
use std::collections::BTreeMap;
use std::time::SystemTime;

use oci::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use crate::api::Typed;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The build's id, as its client chose it.
    pub reference: String,
    pub frontend: String,
    pub frontend_attrs: BTreeMap<String, String>,
    pub exporters: Vec<Typed>,
    pub created_at: SystemTime,
    /// `None` while it runs.
    pub completed_at: Option<SystemTime>,
    /// Code and message; the details are in the blob `failure`.
    pub error: Option<Failure>,
    pub failure: Option<Descriptor>,
    pub logs: Option<Descriptor>,
    pub trace: Option<Descriptor>,
    /// What the frontend and the exporters said of the result.
    pub response: BTreeMap<String, String>,
    /// Of a build with one result, and the documents that exporters made, whatever the number of results.
    pub result: Option<Results>,
    /// Of a build with several results, by platform id.
    pub results: BTreeMap<String, Results>,
    pub steps: Steps,
    /// Counts changes after the end.
    pub generation: i32,
    pub pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A gRPC code.
    pub code: i32,
    pub message: String,
}

/// What is known of one result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What each exporter made of it, by the exporter's position in the request.
    pub exported: BTreeMap<u32, Descriptor>,
    pub attestations: Vec<Descriptor>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    pub total: u32,
    pub completed: u32,
    pub cached: u32,
    pub warnings: u32,
}

impl Record {
    /// Of a build that begins now.
    pub fn begun(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            frontend: String::new(),
            frontend_attrs: BTreeMap::new(),
            exporters: Vec::new(),
            created_at: SystemTime::now(),
            completed_at: None,
            error: None,
            failure: None,
            logs: None,
            trace: None,
            response: BTreeMap::new(),
            result: None,
            results: BTreeMap::new(),
            steps: Steps::default(),
            generation: 0,
            pinned: false,
        }
    }

    /// The blobs without which the record is of no use.
    pub(super) fn own_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let of_results = self.result.iter().chain(self.results.values()).flat_map(|r| &r.attestations);
        self.logs.iter().chain(&self.failure).chain(&self.trace).chain(of_results)
    }

    /// What exporters made: it is kept as far as it is there.
    pub(super) fn exported(&self) -> impl Iterator<Item = &Digest> {
        self.result.iter().chain(self.results.values()).flat_map(|r| r.exported.values()).map(|d| &d.digest)
    }
}
