//! How the result of one output is found: what is wanted of its inputs, which keys they give, and when nothing is left but to run.
use crate::event::{MissingOutput, Want};
use crate::key::{InputKey, Key, Link, Store};
use crate::state::{Demander, EdgeId, Flags, Mode, Phase, Run, Slot};
use crate::{Answer, Command, Solver};

/// What follows from what is known of an edge.
struct Plan {
    mode: Mode,
    phase: Phase,
    /// All inputs are there and no record is.
    may_run: bool,
}

impl<S: Store, F: Clone + From<MissingOutput>> Solver<S, F> {
    /// Moves an edge on as far as what is known allows.
    pub(crate) fn advance(&mut self, id: EdgeId) {
        let edge = &self.edges[&id];
        let vertex = &self.vertices[&edge.vertex];
        if edge.result.is_some() || vertex.failure.is_some() {
            return self.settle(id);
        }
        if edge.want() == Want::Nothing {
            return self.rest(id);
        }
        if let Some(failure) = self.failure_of_inputs(id) {
            self.fail(self.edges[&id].vertex, failure);
            return self.settle(id);
        }
        if vertex.maps.is_empty() {
            self.map(self.edges[&id].vertex);
        }
        if self.edges[&id].inputs.is_empty() {
            self.search_root(id);
        } else {
            self.search(id);
        }
        if self.edges[&id].result.is_none() {
            self.answer(id);
            self.tidy(self.edges[&id].vertex);
        }
    }

    fn failure_of_inputs(&self, id: EdgeId) -> Option<F> {
        let edge = &self.edges[&id];
        let inputs = &self.vertices[&edge.vertex].inputs;
        let wanted = edge.changed.iter().map(|i| *i as usize).filter(|i| edge.inputs[*i].demand != Want::Nothing);
        let mut failures = wanted.filter_map(|i| {
            let input = &self.edges[&inputs[i]];
            if input.result.is_some() { None } else { self.vertices[&input.vertex].failure.clone() }
        });
        failures.next()
    }

    /// An output of a vertex without inputs: each cache map is a key.
    fn search_root(&mut self, id: EdgeId) {
        let edge = &self.edges[&id];
        let vertex = &self.vertices[&edge.vertex];
        let unseen: Vec<Key> = vertex.maps[edge.maps_seen..].iter().map(|m| Key::root(&m.digest, edge.output, vertex.export)).collect();
        let (v, want, has_map, all_mapped) = (edge.vertex, edge.want(), vertex.map().is_some(), vertex.all_mapped());
        if !vertex.ignore_cache {
            for key in &unseen {
                self.learn(id, key.clone());
            }
        }
        self.edge_mut(id).maps_seen += unseen.len();
        if !self.vertices[&v].awaits.is_empty() {
            return;
        }
        if want >= Want::Keys || !all_mapped {
            self.find_records(id);
        }
        if has_map && !all_mapped && self.edges[&id].records.is_empty() {
            self.map(v);
        } else if has_map {
            self.reach(id, Phase::Exhausted);
        }
        if want == Want::Result && !self.load_record(id) && all_mapped {
            self.run(id);
        }
    }

    fn search(&mut self, id: EdgeId) {
        if self.edges[&id].mode == Mode::Nothing {
            // Nobody told of changes meanwhile.
            let edge = self.edge_mut(id);
            edge.changed = (0..edge.inputs.len() as u32).collect();
        }
        let v = self.edges[&id].vertex;
        if self.vertices[&v].maps.is_empty() || !self.vertices[&v].awaits.is_empty() {
            // Nothing can be looked up yet; the inputs need not wait for that.
            let changed = std::mem::take(&mut self.edge_mut(id).changed);
            return self.set_mode(id, Mode::Definition, &changed);
        }
        let mut changed = std::mem::take(&mut self.edge_mut(id).changed);
        changed.sort_unstable();
        changed.dedup();
        self.probe(id, &changed);
        changed.iter().for_each(|i| self.count(id, *i as usize));
        self.intersect(id);
        if self.edges[&id].want() >= Want::Keys {
            self.find_records(id);
        }
        if self.edges[&id].want() == Want::Result && self.load_record(id) {
            return self.set_mode(id, Mode::Nothing, &[]);
        }
        let plan = self.plan(id);
        self.set_mode(id, plan.mode, &changed);
        self.reach(id, plan.phase);
        if plan.may_run {
            self.run(id);
        }
    }

    fn plan(&self, id: EdgeId) -> Plan {
        let edge = &self.edges[&id];
        let (want, tally) = (edge.want(), edge.tally);
        let phase = if tally.undefined == 0 { Phase::Definition } else { Phase::Open };
        if want == Want::Keys && !edge.records.is_empty() {
            return Plan { mode: Mode::Definition, phase: Phase::Exhausted, may_run: false };
        }
        let is_hopeless = self.vertices[&edge.vertex].ignore_cache || tally.hopeless > 0;
        if !is_hopeless {
            if want == Want::Definition || tally.undefined > 0 {
                return Plan { mode: Mode::Definition, phase, may_run: false };
            }
            // Inputs without any match come first: where one of them stays without, the others need not be looked into.
            if tally.unmatched > 0 || tally.open > 0 {
                return Plan { mode: Mode::Search { unmatched_only: tally.unmatched > 0 }, phase, may_run: false };
            }
        }
        if want < Want::Result {
            return Plan { mode: Mode::Definition, phase: Phase::Exhausted, may_run: false };
        }
        Plan { mode: Mode::Result, phase: Phase::Exhausted, may_run: tally.unready == 0 }
    }

    /// Takes note of how far an input has come.
    fn count(&mut self, id: EdgeId, i: usize) {
        let edge = &self.edges[&id];
        let vertex = &self.vertices[&edge.vertex];
        let input = &self.edges[&vertex.inputs[i]];
        let map = vertex.map().and_then(|m| m.inputs.get(i));
        let (content, prepare) = map.map_or((false, false), |m| (m.content, m.prepare));
        let is_inspected = vertex.inspections[i].done;
        let flags = Flags {
            is_defined: input.phase >= Phase::Definition || input.result.is_some(),
            is_matched: !edge.inputs[i].targets.is_empty(),
            is_open: !input.is_exhausted() || (content && !is_inspected),
            is_exhausted: input.is_exhausted(),
            is_ready: input.result.is_some() && (is_inspected || !(content || prepare)),
        };
        let edge = self.edge_mut(id);
        if let Some(old) = edge.inputs[i].flags.replace(flags) {
            edge.tally.count(old, -1);
        }
        edge.tally.count(flags, 1);
    }

    /// Follows the links of keys that inputs gave since the last look.
    fn probe(&mut self, id: EdgeId, changed: &[u32]) {
        let edge = &self.edges[&id];
        let vertex = &self.vertices[&edge.vertex];
        if vertex.ignore_cache {
            return;
        }
        let map = vertex.map().expect("keys are looked up only once the vertex is mapped");
        let mut found = Vec::new();
        let mut seen = Vec::new();
        for i in changed.iter().map(|i| *i as usize) {
            let known = &edge.inputs[i];
            let keys = &self.edges[&vertex.inputs[i]].keys;
            let content = vertex.inspections[i].content.as_ref().filter(|_| !known.content_seen);
            if known.seen == keys.len() && content.is_none() {
                continue;
            }
            let selector = map.inputs.get(i).and_then(|m| m.selector.clone());
            let by_definition = keys[known.seen..].iter().map(|k| (k, selector.clone()));
            for (key, selector) in by_definition.chain(content.map(|k| (k, None))) {
                if !key.volatile {
                    let link = Link { input: i as u32, output: edge.output, digest: map.digest.clone(), selector };
                    found.extend(self.store.links(&vertex.caches, &key.id, &link).into_iter().map(|t| (i, t)));
                }
            }
            seen.push((i, keys.len(), known.content_seen || content.is_some()));
        }
        let edge = self.edge_mut(id);
        for (i, count, content) in seen {
            (edge.inputs[i].seen, edge.inputs[i].content_seen) = (count, content);
        }
        edge.has_new_targets |= !found.is_empty();
        for (i, target) in found {
            *edge.inputs[i].targets.entry(target.id).or_default() |= target.local;
        }
    }

    /// A key that all inputs lead to is a key of this edge.
    fn intersect(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        if edge.tally.unmatched > 0 || !std::mem::take(&mut edge.has_new_targets) {
            return;
        }
        let edge = &self.edges[&id];
        let fewest = edge.inputs.iter().map(|i| &i.targets).min_by_key(|t| t.len()).expect("only edges with inputs are searched");
        let is_new = |target: &&_| edge.keys.iter().all(|k| k.id != **target);
        let in_all = |target: &&_| edge.inputs.iter().all(|i| i.targets.contains_key(*target));
        let matches: Vec<_> = fewest.keys().filter(is_new).filter(in_all).cloned().collect();
        for target in matches {
            let edge = &self.edges[&id];
            let vertex = &self.vertices[&edge.vertex];
            let digest = vertex.map().expect("mapped, as above").digest.clone();
            let stored = edge.inputs.iter().all(|i| i.targets[&target]);
            let key = Key::derived(target, &digest, edge.output, self.input_keys(id), vertex.export, stored);
            self.learn(id, key);
        }
    }

    /// What every input is known by at present.
    pub(crate) fn input_keys(&self, id: EdgeId) -> Vec<Vec<InputKey>> {
        let vertex = &self.vertices[&self.edges[&id].vertex];
        let Some(map) = vertex.map() else { return Vec::new() };
        let keys = |(i, input): (usize, &EdgeId)| {
            let selector = map.inputs.get(i).and_then(|m| m.selector.clone());
            let by_definition = |k: &Key| InputKey { key: k.clone(), selector: selector.clone() };
            let content = vertex.inspections[i].content.iter().map(|k| InputKey { key: k.clone(), selector: None });
            self.edges[input].known_by.iter().map(by_definition).chain(content).collect()
        };
        vertex.inputs.iter().enumerate().map(keys).collect()
    }

    /// Looks everything up once more: another vertex may have left a result since.
    pub(crate) fn probe_again(&mut self, id: EdgeId) {
        let edge = self.edge_mut(id);
        edge.inputs.iter_mut().for_each(|i| (i.seen, i.content_seen) = (0, false));
        let all: Vec<u32> = (0..edge.inputs.len() as u32).collect();
        if !all.is_empty() {
            self.probe(id, &all);
            all.iter().for_each(|i| self.count(id, *i as usize));
            self.intersect(id);
        }
        self.edge_mut(id).looked_up = 0;
        self.find_records(id);
    }

    fn learn(&mut self, id: EdgeId, key: Key) {
        if self.edge_mut(id).learn(key) {
            self.wake(id);
        }
    }

    /// Looks for results of keys that were learned since the last look.
    fn find_records(&mut self, id: EdgeId) {
        let edge = &self.edges[&id];
        let caches = &self.vertices[&edge.vertex].caches;
        let mut found = Vec::new();
        for (position, key) in edge.keys.iter().enumerate().skip(edge.looked_up).filter(|(_, k)| !k.volatile) {
            found.extend(self.store.records(caches, &key.id).into_iter().map(|record| (record, position)));
        }
        let edge = self.edge_mut(id);
        edge.looked_up = edge.keys.len();
        for (record, position) in found {
            if !edge.lost.contains(&record) && edge.records.iter().all(|(r, _)| *r != record) {
                edge.records.push((record, position));
            }
        }
    }

    /// Says what is wanted of the inputs; of those that changed, if the mode stays the same.
    fn set_mode(&mut self, id: EdgeId, mode: Mode, changed: &[u32]) {
        let edge = self.edge_mut(id);
        if std::mem::replace(&mut edge.mode, mode) != mode {
            (0..edge.inputs.len()).for_each(|i| self.demand_input(id, i));
        } else {
            changed.iter().for_each(|i| self.demand_input(id, *i as usize));
        }
    }

    fn demand_input(&mut self, id: EdgeId, i: usize) {
        let edge = &self.edges[&id];
        let v = edge.vertex;
        let flags = edge.inputs[i].flags.unwrap_or_default();
        let want = match edge.mode {
            Mode::Nothing => Want::Nothing,
            Mode::Definition => Want::Definition,
            Mode::Search { unmatched_only } if !flags.is_open || (unmatched_only && flags.is_matched) => Want::Definition,
            Mode::Search { .. } if flags.is_exhausted => Want::Result,
            Mode::Search { .. } => Want::Keys,
            Mode::Result => Want::Result,
        };
        let input = self.vertices[&v].inputs[i];
        let before = std::mem::replace(&mut self.edge_mut(id).inputs[i].demand, want);
        if before != want {
            if self.edge_mut(input).demand(Demander::Edge(id, i as u32), want) {
                self.look_at(input);
            }
            let input = &self.edges[&input];
            if want != Want::Nothing && input.result.is_none() && self.vertices[&input.vertex].failure.is_some() {
                self.look_at_input(id, i as u32); // it failed before this edge came, and will not say so again
            }
        }
        if want == Want::Result {
            self.inspect(v, i);
        }
    }

    pub(crate) fn look_at_input(&mut self, id: EdgeId, input: u32) {
        self.edge_mut(id).changed.push(input);
        self.look_at(id);
    }

    fn reach(&mut self, id: EdgeId, phase: Phase) {
        let edge = self.edge_mut(id);
        if edge.phase < phase {
            edge.phase = phase;
            self.wake(id);
        }
    }

    /// Has users look at what changed.
    pub(crate) fn wake(&mut self, id: EdgeId) {
        let user = |by: &Demander| if let Demander::Edge(user, input) = by { Some((*user, *input)) } else { None };
        let users: Vec<(EdgeId, u32)> = self.edges[&id].demands.keys().filter_map(user).collect();
        users.into_iter().for_each(|(user, input)| self.look_at_input(user, input));
    }

    /// Ends an edge that has its result, or never will.
    fn settle(&mut self, id: EdgeId) {
        self.answer(id);
        self.rest(id);
        if !std::mem::replace(&mut self.edge_mut(id).is_settled, true) {
            self.wake(id);
        }
    }

    /// Lets go of everything that was wanted for an edge.
    fn rest(&mut self, id: EdgeId) {
        self.set_mode(id, Mode::Nothing, &[]);
        self.edge_mut(id).wants_run = false;
        self.tidy(self.edges[&id].vertex);
    }

    /// Answers requests that have what they asked for.
    fn answer(&mut self, id: EdgeId) {
        let edge = &self.edges[&id];
        let failure = if edge.result.is_some() { None } else { self.vertices[&edge.vertex].failure.clone() };
        let is_final = edge.result.is_some() || failure.is_some();
        let is_met = |want: Want| match want {
            Want::Definition => edge.phase >= Phase::Definition,
            Want::Keys => edge.phase == Phase::Exhausted,
            Want::Nothing | Want::Result => false,
        };
        let mut met = Vec::new();
        for (by, want) in &edge.demands {
            match by {
                Demander::Request(request) if is_final || is_met(*want) => met.push(*request),
                Demander::Request(_) => {}
                Demander::Edge(..) => break, // requests come first
            }
        }
        for request in met {
            let edge = &self.edges[&id];
            let answer = match &failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(Answer { keys: edge.known_by.clone(), result: edge.result.clone() }),
            };
            self.commands.push(Command::Answer { request, answer });
            self.release(request);
        }
    }

    /// Stops what is not needed any more by any output of the vertex.
    pub(crate) fn tidy(&mut self, v: crate::VertexId) {
        let vertex = &self.vertices[&v];
        let has_failed = vertex.failure.is_some();
        let mut most = Want::Nothing;
        let mut wants_run = false;
        let mut loads = Vec::new();
        for id in vertex.edges.values() {
            let edge = &self.edges[id];
            let want = if has_failed || edge.result.is_some() { Want::Nothing } else { edge.want() };
            if let Slot::Running(task) = edge.loading
                && want < Want::Result
            {
                loads.push((*id, task));
            }
            most = most.max(want);
            wants_run |= edge.wants_run && want == Want::Result;
        }
        for (id, task) in loads {
            self.edge_mut(id).loading = Slot::Stopping;
            self.commands.push(Command::Cancel(task));
        }
        if most == Want::Nothing {
            self.stop_mapping(v);
        }
        if most < Want::Keys {
            self.stop_inspections(v);
        }
        let is_running = matches!(self.vertices[&v].run, Run::Active(_) | Run::Queued);
        if is_running && !wants_run {
            self.stop_run(v);
        }
    }
}
