//! Who asked for what in a build: the request, the frontends that ran for it, and the results each of them made.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use llb::Graph;
use oci::Digest;

use crate::provenance::capture::Capture;
use crate::provenance::request::{Asked, shown_args};
use crate::provenance::sources::{ImageSource, Sources};

/// A frontend with its options and inputs.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub frontend: String,
    pub opts: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Arc<Graph>>,
}

impl Request {
    fn is_empty(&self) -> bool {
        self.frontend.is_empty() && self.opts.is_empty() && self.inputs.is_empty()
    }
}

/// A result on its way, and once it is there what went into it.
#[derive(Debug)]
pub struct Traced {
    pub id: String,
    pub graph: Arc<Graph>,
    pub capture: OnceLock<Capture>,
}

/// Which requests made which graphs, over all running builds: a graph that one build made may be the input of another.
#[derive(Clone, Default)]
pub struct Producers(Arc<Mutex<ByHead>>);

/// By the vertex that a graph's result is of; each with the number of its record.
type ByHead = HashMap<Digest, BTreeMap<u64, Asked>>;

impl Producers {
    fn put(&self, graph: &Graph, asked: Asked) -> Option<Record> {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let head = graph.result.as_ref()?.vertex.clone();
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.lock().expect("no holder of this lock panics").entry(head.clone()).or_default().insert(number, asked);
        Some(Record { producers: self.clone(), head, number })
    }

    /// `None` where nobody made the graph, or several did in different ways.
    fn find(&self, graph: &Graph) -> Option<Asked> {
        let all = self.0.lock().expect("no holder of this lock panics");
        let mut made = all.get(&graph.result.as_ref()?.vertex)?.values().map(|asked| {
            let mut asked = asked.clone();
            asked.request.root = None;
            asked
        });
        let first = made.next()?;
        made.all(|other| other == first).then_some(first)
    }
}

/// Goes with the build that made it.
struct Record {
    producers: Producers,
    head: Digest,
    number: u64,
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut all = self.producers.0.lock().expect("no holder of this lock panics");
        if let Some(made) = all.get_mut(&self.head) {
            made.remove(&self.number);
            if made.is_empty() {
                all.remove(&self.head);
            }
        }
    }
}

/// One frontend's run, or the build itself.
pub struct Scope {
    /// `None` for the build itself.
    request: Option<Request>,
    /// What the client asked for in the first place.
    root: Arc<Request>,
    producers: Producers,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    images: Vec<ImageSource>,
    results: Vec<Arc<Traced>>,
    inner: Vec<Arc<Scope>>,
    records: Vec<Record>,
}

impl Scope {
    pub fn root(request: Request, producers: Producers) -> Arc<Self> {
        Arc::new(Self { request: None, root: Arc::new(request), producers, state: Mutex::default() })
    }

    /// A frontend that is about to run. It belongs to this scope once [`Scope::adopt`] is called.
    pub fn inner(&self, request: Request) -> Arc<Self> {
        let asked_already = self.request.as_ref().filter(|_| self.root.is_empty());
        let root = asked_already.map_or_else(|| self.root.clone(), |own| Arc::new(own.clone()));
        Arc::new(Self { request: Some(request), root, producers: self.producers.clone(), state: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// An image whose config was asked for.
    pub fn saw(&self, image: ImageSource) {
        self.state().images.push(image);
    }

    /// A result of a graph that was solved here.
    pub fn solved(&self, result: Arc<Traced>) {
        self.state().results.push(result.clone());
        self.made(&result);
    }

    /// A frontend ended well, with these results.
    pub fn adopt(&self, inner: Arc<Scope>, results: Vec<Arc<Traced>>) {
        inner.state().results.extend(results.iter().cloned());
        self.state().inner.push(inner);
        results.iter().for_each(|result| self.made(result));
    }

    /// Lets users of the result as an input know who made it.
    fn made(&self, result: &Traced) {
        let sources = result.capture.get().map(|c| c.sources.clone()).unwrap_or_default();
        let asked = self.made_by(&result.id, |scope| scope.asked(&sources)).flatten();
        let record = asked.and_then(|asked| self.producers.put(&result.graph, asked));
        self.state().records.extend(record);
    }

    /// Applies `f` to the scope that a result came from.
    fn made_by<T>(&self, id: &str, f: impl FnOnce(&Self) -> T) -> Option<T> {
        fn find(scope: &Scope, id: &str) -> Option<Option<Arc<Scope>>> {
            let inner = scope.state().inner.clone();
            for inner in inner {
                match find(&inner, id) {
                    Some(None) => return Some(Some(inner)),
                    Some(deeper) => return Some(deeper),
                    None => {}
                }
            }
            scope.state().results.iter().any(|result| result.id == id).then_some(None)
        }
        find(self, id).map(|inner| match inner {
            Some(inner) => f(&inner),
            None => f(self),
        })
    }

    fn asked(&self, sources: &Sources) -> Option<Asked> {
        let request = self.request.as_ref()?;
        let mut asked = Asked::new(&request.frontend, shown_args(&request.opts), sources);
        asked.request.inputs = self.inputs(request);
        asked.request.root = self.root_asked(sources).filter(|root| *root != asked).map(Box::new);
        Some(asked)
    }

    fn inputs(&self, request: &Request) -> BTreeMap<String, Asked> {
        request.inputs.iter().filter_map(|(name, graph)| Some((name.clone(), self.producers.find(graph)?))).collect()
    }

    fn root_asked(&self, sources: &Sources) -> Option<Asked> {
        if self.root.is_empty() {
            return None;
        }
        let mut root = Asked::new(&self.root.frontend, shown_args(&self.root.opts), sources);
        root.request.inputs = self.inputs(&self.root);
        let says_nothing = root.request.frontend.is_empty() && root.request.args.is_empty() && root.request.inputs.is_empty();
        (!says_nothing).then_some(root)
    }

    /// What went into a result, with who asked for it.
    fn capture_of(&self, result: &Traced) -> Option<Capture> {
        let mut capture = result.capture.get()?.clone();
        if let Some(request) = &self.request {
            capture.request.frontend = request.frontend.clone();
            capture.request.args = shown_args(&request.opts);
            capture.request.inputs = self.inputs(request);
            if let Some(root) = self.root_asked(&capture.sources) {
                let mut own = Asked::new(&capture.request.frontend, capture.request.args.clone(), &capture.sources);
                own.request.inputs = capture.request.inputs.clone();
                if root != own {
                    capture.request.root = Some(Box::new(root));
                }
            }
        }
        Some(capture)
    }

    /// All results made here and below.
    fn results(&self) -> Vec<Arc<Traced>> {
        let (mut all, inner) = {
            let state = self.state();
            (state.results.clone(), state.inner.clone())
        };
        inner.iter().for_each(|scope| all.extend(scope.results()));
        all
    }

    fn images(&self) -> Vec<ImageSource> {
        let (mut all, inner) = {
            let state = self.state();
            (state.images.clone(), state.inner.clone())
        };
        inner.iter().for_each(|scope| all.extend(scope.images()));
        all
    }

    /// Everything about one of the build's final results: what it was made from, and what else its frontend looked at on the way. `final_ids` are all
    /// results that the build returns; `images` picks those that concern this one.
    pub fn provenance(
        &self,
        result: &Traced,
        final_ids: &BTreeSet<String>,
        images: impl FnOnce(Vec<ImageSource>) -> Vec<ImageSource>,
    ) -> Option<fault::Result<Capture>> {
        self.made_by(&result.id, |scope| {
            let mut capture = scope.capture_of(result)?;
            let mut seen = final_ids.clone();
            for other in scope.results() {
                if seen.insert(other.id.clone())
                    && let Some(other) = scope.capture_of(&other)
                {
                    capture.merge(&other);
                }
            }
            images(scope.images()).into_iter().for_each(|image| capture.sources.add_image(image));
            let optimized = capture.sources.without_pinned_twins();
            capture.sort();
            Some(optimized.map(|()| capture))
        })
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llb::{Builder, Metadata, Op, SourceOp};

    fn traced(id: &str, source: &str) -> Arc<Traced> {
        let mut builder = Builder::new();
        let op = SourceOp { identifier: source.into(), attrs: Default::default() };
        let edge = builder.add(Op::Source(op), Vec::new(), None, Vec::new(), Metadata::default());
        let graph = Arc::new(builder.finish(Some(edge)));
        let capture = OnceLock::from(Capture::of(&graph, |_| Some(Digest::of(source).to_string()), |_| None));
        Arc::new(Traced { id: id.into(), graph, capture })
    }

    fn request(frontend: &str, inputs: &[(&str, &Traced)]) -> Request {
        let inputs = inputs.iter().map(|(name, traced)| ((*name).to_owned(), traced.graph.clone())).collect();
        Request { frontend: frontend.into(), opts: BTreeMap::new(), inputs }
    }

    #[test]
    fn a_result_has_the_request_of_the_frontend_that_made_it_and_all_it_looked_at() {
        let root = Scope::root(request("dockerfile.v0", &[]), Producers::default());
        let inner = root.inner(request("dockerfile.v0", &[]));
        let (file, result) = (traced("1", "local://dockerfile"), traced("2", "docker-image://docker.io/library/a:1"));
        inner.solved(file);
        inner.solved(result.clone());
        let pinned = ImageSource { reference: "docker.io/library/b:1".into(), platform: None, digest: None, local: false };
        inner.saw(pinned);
        root.adopt(inner, vec![result.clone()]);
        let capture = root.provenance(&result, &BTreeSet::from(["2".to_owned()]), |all| all).unwrap().unwrap();
        assert_eq!(capture.request.frontend, "dockerfile.v0");
        assert_eq!(capture.request.root, None, "the root is this very request");
        assert_eq!(capture.sources.local.len(), 1);
        let images: Vec<&str> = capture.sources.images.iter().map(|i| i.reference.as_str()).collect();
        assert_eq!(images, ["docker.io/library/a:1", "docker.io/library/b:1"]);
    }

    #[test]
    fn an_input_names_the_frontend_that_made_it_until_its_build_ends() {
        let producers = Producers::default();
        let first = Scope::root(Request::default(), producers.clone());
        let maker = first.inner(request("maker", &[]));
        let base = traced("1", "docker-image://docker.io/library/a:1");
        first.adopt(maker, vec![base.clone()]);

        let second = Scope::root(request("user", &[("base", &base)]), producers.clone());
        let user = second.inner(request("user", &[("base", &base)]));
        let result = traced("2", "docker-image://docker.io/library/c:1");
        second.adopt(user, vec![result.clone()]);
        let inputs = |scope: &Scope| scope.provenance(&result, &BTreeSet::new(), |all| all).unwrap().unwrap().request.inputs;
        assert_eq!(inputs(&second)["base"].request.frontend, "maker");
        drop(first);
        assert!(inputs(&second).is_empty());
        assert_eq!(producers.0.lock().unwrap().len(), 1);
    }
}
