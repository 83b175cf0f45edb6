//! Worker filters: `id` and `labels.<key>`.
use job::Worker;
use patterns::Filters;
use tonic::Status;

pub struct WorkerFilters(Filters);

pub fn parse(texts: &[String]) -> Result<WorkerFilters, Status> {
    Filters::parse(texts).map(WorkerFilters).map_err(|e| Status::invalid_argument(e.to_string()))
}

impl WorkerFilters {
    pub fn matches(&self, worker: &Worker) -> bool {
        self.0.matches(|path| match path {
            ["id"] => Some(worker.id.clone()),
            ["labels", rest @ ..] => worker.labels.get(&rest.join(".")).cloned(),
            _ => None,
        })
    }
}
