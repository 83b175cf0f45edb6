//! Whose fault a failure is, in the words of the client: its vertex, its file, its lines.
use fault::{Detail, Fault, Kind};
use llb::Graph;
use oci::Digest;
use solver::MissingOutput;

/// A failure as the solver shares it between jobs.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub fault: Fault,
    /// What watchers of the vertex see; the fault may say more.
    pub shown: String,
}

impl Failure {
    /// A failure of a vertex's work. `doing` says what was done, if that was not running it.
    pub fn of(fault: Fault, doing: Option<&str>, vertex: &Digest) -> Self {
        let shown = fault.to_string();
        let fault = match doing {
            Some(doing) => fault.context(doing),
            None => fault,
        };
        Self { fault: fault.with_detail(Detail::Vertex { digest: vertex.to_string() }), shown }
    }
}

impl From<MissingOutput> for Failure {
    fn from(error: MissingOutput) -> Self {
        Self { shown: error.to_string(), fault: Fault::of(Kind::Internal, error) }
    }
}

/// The failure for one job: names the vertex as the job's client does, and says where it stems from.
pub fn for_client(fault: Fault, graph: &Graph) -> Fault {
    let failed = fault.details().into_iter().find_map(|detail| match detail {
        Detail::Vertex { digest } => digest.parse::<Digest>().ok(),
        _ => None,
    });
    let Some(failed) = failed else { return fault };
    let sources = graph.locations(&failed).iter().filter_map(|location| {
        let info = graph.sources.infos.get(location.source)?;
        Some(Detail::Source {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: info.data.to_vec(),
            definition: info.definition.as_ref().map(|bytes| bytes.to_vec()).unwrap_or_default(),
            ranges: location.ranges.iter().map(|r| fault::Range { start: r.start, end: r.end }).collect(),
        })
    });
    let original = graph.original(&failed);
    let renamed = (*original != failed).then(|| Detail::Vertex { digest: original.to_string() });
    sources.chain(renamed).fold(fault.clone(), Fault::with_detail)
}
