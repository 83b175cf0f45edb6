//! Starting, stopping and ending work.
use crate::event::{Command, MissingOutput, Outcome, Progress, TaskId, VertexId};
use crate::key::{CacheId, Key, Record, Store};
use crate::state::{EdgeId, Run, Slot, Work};
use crate::{CacheMap, Solver};

const KIND: &str = "a task ends with the outcome of its kind";

impl<S: Store, F: Clone + From<MissingOutput>> Solver<S, F> {
    fn task(&mut self, vertex: VertexId, work: Work) -> TaskId {
        let task = TaskId(self.number());
        self.tasks.insert(task, (vertex, work));
        task
    }

    /// Asks for the next cache map. What a vertex without inputs does for it can be watched.
    pub(crate) fn map(&mut self, v: VertexId) {
        if self.vertices[&v].mapping != Slot::Idle {
            return;
        }
        let task = self.task(v, Work::Map);
        let vertex = self.vertex_mut(v);
        vertex.mapping = Slot::Running(task);
        let (index, is_root) = (vertex.maps.len(), vertex.inputs.is_empty());
        if is_root {
            self.began(v);
        }
        self.commands.push(Command::Map { task, vertex: v, index });
    }

    /// Asks for what is to be known of an input whose result is there.
    pub(crate) fn inspect(&mut self, v: VertexId, input: usize) {
        let vertex = &self.vertices[&v];
        let Some(map) = vertex.map().and_then(|m| m.inputs.get(input)) else { return };
        let inspection = &vertex.inspections[input];
        let (content, is_needed) = (map.content, map.content || map.prepare);
        let Some(result) = self.edges[&vertex.inputs[input]].result.clone() else { return };
        if !is_needed || inspection.done || inspection.slot != Slot::Idle {
            return;
        }
        let task = self.task(v, Work::Inspect(input));
        self.vertex_mut(v).inspections[input].slot = Slot::Running(task);
        self.commands.push(Command::Inspect { task, vertex: v, input, result, content });
    }

    /// Loads the best record, if there is one. `true` while that is going on.
    pub(crate) fn load_record(&mut self, id: EdgeId) -> bool {
        let edge = &self.edges[&id];
        if edge.loading != Slot::Idle {
            return true;
        }
        let best = edge.records.iter().max_by_key(|(r, _)| (r.created_at, r.cache == CacheId::LOCAL, &r.id));
        let Some((record, position)) = best.cloned() else { return false };
        let (vertex, output) = (edge.vertex, edge.output);
        let task = self.task(vertex, Work::Load(id));
        let edge = self.edge_mut(id);
        edge.loading = Slot::Running(task);
        edge.loads = Some((record.clone(), position));
        self.began(vertex);
        self.commands.push(Command::Load { task, vertex, output, record });
        true
    }

    /// Has the vertex run for this edge, unless a result turns up in the last moment or another vertex is already at the same.
    pub(crate) fn run(&mut self, id: EdgeId) {
        let v = self.edges[&id].vertex;
        match &self.vertices[&v].run {
            Run::Done(_) => return self.finish_run(id),
            Run::Queued | Run::Active(_) | Run::Stopping => {
                self.edge_mut(id).wants_run = true;
                return;
            }
            Run::Idle => {}
        }
        if !self.vertices[&v].ignore_cache {
            self.probe_again(id);
            if self.load_record(id) {
                return;
            }
        }
        self.edge_mut(id).wants_run = true;
        let digest = self.vertices[&v].map().expect("what runs has been mapped").digest.clone();
        let same = Key::mint(&digest, 0, &self.input_keys(id));
        let vertex = &self.vertices[&v];
        let must_wait = vertex.limited && self.limits.runs.is_some_and(|n| self.limited_runs >= n);
        match self.running_as.get_mut(&same) {
            Some(followers) if !vertex.ignore_cache => {
                if !followers.contains(&v) {
                    followers.push(v);
                }
                return;
            }
            Some(_) => {}
            None => {
                self.running_as.insert(same.clone(), Vec::new());
                self.vertex_mut(v).running_as = Some(same);
            }
        }
        if must_wait {
            self.vertex_mut(v).run = Run::Queued;
            self.waiting.push_back(v);
        } else {
            self.start_run(v);
        }
    }

    fn start_run(&mut self, v: VertexId) {
        let vertex = &self.vertices[&v];
        self.limited_runs += usize::from(vertex.limited);
        let result = |e| self.edges[e].result.clone().expect("a vertex runs only once all its inputs are there");
        let inputs = vertex.inputs.iter().map(result).collect();
        let task = self.task(v, Work::Run);
        self.vertex_mut(v).run = Run::Active(task);
        self.began(v);
        self.commands.push(Command::Run { task, vertex: v, inputs });
    }

    pub(crate) fn stop_mapping(&mut self, v: VertexId) {
        if let Slot::Running(task) = self.vertices[&v].mapping {
            self.vertex_mut(v).mapping = Slot::Stopping;
            self.commands.push(Command::Cancel(task));
        }
    }

    pub(crate) fn stop_inspections(&mut self, v: VertexId) {
        for i in 0..self.vertices[&v].inspections.len() {
            if let Slot::Running(task) = self.vertices[&v].inspections[i].slot {
                self.vertex_mut(v).inspections[i].slot = Slot::Stopping;
                self.commands.push(Command::Cancel(task));
            }
        }
    }

    pub(crate) fn stop_run(&mut self, v: VertexId) {
        match self.vertices[&v].run {
            Run::Active(task) => {
                self.vertex_mut(v).run = Run::Stopping;
                self.commands.push(Command::Cancel(task));
            }
            Run::Queued => {
                self.vertex_mut(v).run = Run::Idle;
                self.waiting.retain(|w| *w != v);
                self.let_followers_go(v);
            }
            Run::Idle | Run::Stopping | Run::Done(_) => {}
        }
    }

    pub(crate) fn ended(&mut self, task: TaskId, outcome: Outcome<S::Result, F>) {
        let Some((v, work)) = self.tasks.remove(&task) else { return };
        match work {
            Work::Map => self.map_ended(v, outcome),
            Work::Inspect(input) => self.inspect_ended(v, input, outcome),
            Work::Load(edge) => self.load_ended(v, edge, outcome),
            Work::Run => self.run_ended(v, outcome),
        }
        self.look_at_all(v);
        if self.vertices[&v].jobs.is_empty() {
            self.leaving.push(v);
        }
    }

    fn map_ended(&mut self, v: VertexId, outcome: Outcome<S::Result, F>) {
        let vertex = self.vertex_mut(v);
        let was_stopped = matches!(std::mem::take(&mut vertex.mapping), Slot::Stopping);
        let progress = match outcome {
            Outcome::Mapped(map) => {
                vertex.maps.push(map);
                // All inputs are to be looked at in the light of it.
                let edges: Vec<EdgeId> = vertex.edges.values().copied().collect();
                for edge in edges {
                    let edge = self.edge_mut(edge);
                    edge.changed = (0..edge.inputs.len() as u32).collect();
                }
                Progress::Completed
            }
            Outcome::Failed(failure) if !was_stopped => {
                self.fail(v, failure.clone());
                Progress::Failed(failure)
            }
            Outcome::Failed(_) | Outcome::Canceled => Progress::Canceled,
            Outcome::Inspected(_) | Outcome::Loaded(_) | Outcome::Ran(_) => unreachable!("{KIND}"),
        };
        if self.vertices[&v].inputs.is_empty() {
            self.over(v, progress);
        }
    }

    fn inspect_ended(&mut self, v: VertexId, input: usize, outcome: Outcome<S::Result, F>) {
        let inspection = &mut self.vertex_mut(v).inspections[input];
        let was_stopped = matches!(std::mem::take(&mut inspection.slot), Slot::Stopping);
        match outcome {
            Outcome::Inspected(digest) => {
                inspection.done = true;
                inspection.content = digest.as_ref().map(Key::content);
            }
            Outcome::Failed(failure) if !was_stopped => {
                self.began(v);
                self.over(v, Progress::Failed(failure.clone()));
                self.fail(v, failure);
            }
            Outcome::Failed(_) | Outcome::Canceled => {}
            Outcome::Mapped(_) | Outcome::Loaded(_) | Outcome::Ran(_) => unreachable!("{KIND}"),
        }
        let edges: Vec<EdgeId> = self.vertices[&v].edges.values().copied().collect();
        edges.into_iter().for_each(|e| self.look_at_input(e, input as u32));
    }

    /// A record that cannot be loaded is one record less.
    fn load_ended(&mut self, v: VertexId, id: EdgeId, outcome: Outcome<S::Result, F>) {
        let edge = self.edge_mut(id);
        let was_stopped = matches!(std::mem::take(&mut edge.loading), Slot::Stopping);
        let (record, position) = edge.loads.take().expect("set when the load began");
        match outcome {
            Outcome::Loaded(Some(result)) => {
                edge.result = Some(result.clone());
                self.over(v, Progress::Cached);
                self.remember_hit(id, position, &record, &result);
            }
            Outcome::Canceled => self.over(v, Progress::Canceled),
            Outcome::Failed(_) if was_stopped => self.over(v, Progress::Canceled),
            Outcome::Loaded(None) | Outcome::Failed(_) => {
                edge.records.retain(|(r, _)| *r != record);
                edge.lost.insert(record);
                self.over(v, Progress::Completed);
            }
            Outcome::Mapped(_) | Outcome::Inspected(_) | Outcome::Ran(_) => unreachable!("{KIND}"),
        }
    }

    fn run_ended(&mut self, v: VertexId, outcome: Outcome<S::Result, F>) {
        let vertex = self.vertex_mut(v);
        let was_stopped = matches!(std::mem::replace(&mut vertex.run, Run::Idle), Run::Stopping);
        let limited = usize::from(vertex.limited);
        match outcome {
            Outcome::Ran(results) => {
                vertex.run = Run::Done(results);
                self.over(v, Progress::Completed);
                // Saved before followers look, and before a place is given to one that might look too.
                let edges: Vec<EdgeId> = self.vertices[&v].edges.values().copied().collect();
                edges.into_iter().filter(|e| self.edges[e].wants_run).collect::<Vec<_>>().into_iter().for_each(|e| self.finish_run(e));
            }
            Outcome::Failed(failure) if !was_stopped => {
                self.over(v, Progress::Failed(failure.clone()));
                self.fail(v, failure);
            }
            Outcome::Failed(_) | Outcome::Canceled => self.over(v, Progress::Canceled),
            Outcome::Mapped(_) | Outcome::Inspected(_) | Outcome::Loaded(_) => unreachable!("{KIND}"),
        }
        self.limited_runs -= limited;
        self.let_followers_go(v);
        while self.limits.runs.is_none_or(|n| self.limited_runs < n)
            && let Some(next) = self.waiting.pop_front()
        {
            self.start_run(next);
        }
    }

    fn let_followers_go(&mut self, v: VertexId) {
        let Some(same) = self.vertex_mut(v).running_as.take() else { return };
        for follower in self.running_as.remove(&same).unwrap_or_default() {
            if self.vertices.contains_key(&follower) {
                self.look_at_all(follower);
            }
        }
    }

    /// Takes an edge's result out of its vertex's run.
    fn finish_run(&mut self, id: EdgeId) {
        let edge = &self.edges[&id];
        let (v, output) = (edge.vertex, edge.output);
        let Run::Done(results) = &self.vertices[&v].run else { unreachable!("called once the run is done") };
        let Some(result) = results.get(output as usize).cloned() else {
            let results = results.len();
            return self.fail(v, MissingOutput { output, results }.into());
        };
        let edge = self.edge_mut(id);
        edge.result = Some(result.clone());
        edge.wants_run = false;
        self.remember_run(id, &result);
        self.look_at(id);
    }

    fn remember_run(&mut self, id: EdgeId, result: &S::Result) {
        let edge = &self.edges[&id];
        let vertex = &self.vertices[&edge.vertex];
        let keys: Vec<Key> = if vertex.inputs.is_empty() {
            vertex.maps.iter().map(|m| Key::root(&m.digest, edge.output, vertex.export)).collect()
        } else {
            let CacheMap { digest, .. } = vertex.map().expect("what ran has been mapped");
            let inputs = self.input_keys(id);
            let known = edge.keys.first().map(|k| k.id.clone());
            let id = known.unwrap_or_else(|| Key::mint(digest, edge.output, &inputs));
            vec![Key::derived(id, digest, edge.output, inputs, vertex.export, true)]
        };
        // What was forced to run must not lead its users to their old results; theirs lead on, as with BuildKit.
        let may_lead = !vertex.ignore_cache;
        for key in keys {
            if !key.volatile {
                self.persist(&key);
                self.store.save(&key.id, result, None);
            }
            let edge = self.edge_mut(id);
            edge.known_by.retain(|k| k.id != key.id);
            edge.known_by.push(key.clone());
            if may_lead && edge.keys.iter().all(|k| k.id != key.id) {
                edge.keys.push(key);
            }
        }
    }

    /// The first path to a result was not the shortest: links from all keys of the inputs let the next build find it by definition.
    fn remember_hit(&mut self, id: EdgeId, position: usize, record: &Record, result: &S::Result) {
        let edge = &self.edges[&id];
        let key = &edge.keys[position];
        if key.volatile {
            return;
        }
        if !edge.inputs.is_empty() {
            let inputs = self.input_keys(id);
            let is_ambiguous = inputs.iter().any(|keys| keys.iter().filter(|k| !k.key.volatile).count() > 1);
            if is_ambiguous || !key.stored || record.cache != CacheId::LOCAL {
                let key = Key::derived(key.id.clone(), &key.digest, edge.output, inputs, key.export, true);
                self.persist(&key);
            }
        }
        if record.cache != CacheId::LOCAL {
            self.store.save(&self.edges[&id].keys[position].id, result, Some(record.created_at));
        }
    }

    /// Stores the links to a key, and those to keys on the way that the local cache does not have.
    fn persist(&self, key: &Key) {
        let mut pending = vec![key.clone()];
        while let Some(key) = pending.pop() {
            for (from, link) in key.links() {
                self.store.connect(&from.id, &link, &key.id);
                if !from.stored {
                    pending.push(from.clone());
                }
            }
        }
    }

    pub(crate) fn fail(&mut self, v: VertexId, failure: F) {
        self.vertex_mut(v).failure.get_or_insert(failure);
        self.look_at_all(v);
    }

    fn began(&mut self, v: VertexId) {
        let vertex = self.vertex_mut(v);
        vertex.intervals += 1;
        if vertex.intervals == 1 {
            self.commands.push(Command::Progress { vertex: v, progress: Progress::Started });
        }
    }

    /// Ends an interval; where several overlap, watchers see one that ends with the last.
    fn over(&mut self, v: VertexId, progress: Progress<F>) {
        let vertex = self.vertex_mut(v);
        vertex.intervals -= 1;
        if vertex.intervals == 0 {
            self.commands.push(Command::Progress { vertex: v, progress });
        }
    }
}
