//! Copies 30,000 small files and 300 MB from one tree to a new one, as COPY does, and takes its content digest.
//! `cargo bench -p ops --bench copy [directory]`
use std::io::Write as _;
use std::time::Instant;

use llb::{Copy, FileAction, FileActionKind, FileOp, Owner, Who};
use ops::file::{self, Workspace};
use snapshot::{Draft, Editor, Store, TreeId, View};

struct Trees(Store);

impl Workspace for Trees {
    type Stack = Vec<TreeId>;
    type Draft = (Vec<TreeId>, Draft);

    fn view(&self, stack: &Vec<TreeId>) -> fault::Result<View> {
        Ok(self.0.view(stack).expect("trees exist"))
    }

    fn draft(&self, base: Option<&Vec<TreeId>>) -> fault::Result<Self::Draft> {
        Ok((base.cloned().unwrap_or_default(), self.0.create().expect("disk works")))
    }

    fn edit<'d>(&self, (stack, draft): &'d mut Self::Draft) -> fault::Result<Editor<'d>> {
        Ok(self.0.edit(stack, draft).expect("trees exist"))
    }

    fn commit(&self, (mut stack, draft): Self::Draft) -> fault::Result<Vec<TreeId>> {
        stack.push(self.0.commit(draft).expect("disk works"));
        Ok(stack)
    }
}

fn source(store: &Store) -> TreeId {
    let mut draft = store.create().expect("disk works");
    let mut editor = store.edit(&[], &mut draft).expect("disk works");
    for dir in 0..300 {
        editor.mkdir(format!("/d{dir}"), 0o755).expect("new");
        for file in 0..100 {
            editor.create_file(format!("/d{dir}/f{file}"), 0o644).expect("new").write_all(&[b'x'; 200]).expect("disk works");
        }
    }
    let block = vec![7; 1 << 20];
    for file in 0..3 {
        let mut file = editor.create_file(format!("/big{file}"), 0o644).expect("new");
        for _ in 0..100 {
            file.write_all(&block).expect("disk works");
        }
    }
    drop(editor);
    store.commit(draft).expect("disk works")
}

/// Prints what `work` took: on the clock, and of the processor (which does not depend on who else is at work).
fn measure(name: &str, work: impl FnOnce()) {
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (start, before) = (Instant::now(), cpu());
    work();
    let after = cpu();
    let cpu = (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9;
    println!("{name}: {:.3} s, processor {cpu:.3} s", start.elapsed().as_secs_f64());
}

fn main() {
    let parent = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(parent).expect("a directory to work in");
    let trees = Trees(Store::open(dir.path(), Default::default()).expect("a store"));
    let inputs = [None, Some(vec![source(&trees.0)])];
    let copy = |owner| {
        let spec = Copy { src: "/".into(), dest: "/app".into(), dir_copy_contents: true, create_dest_path: true, owner, ..Copy::default() };
        FileOp {
            actions: vec![FileAction {
                input: None,
                secondary_input: Some(1),
                output: Some(0),
                kind: FileActionKind::Copy(Box::new(spec)),
            }],
        }
    };
    let chown = Owner { user: Some(Who::Id(1000)), group: Some(Who::Id(1000)) };
    for round in 0..3 {
        for (name, op) in [("linked", copy(None)), ("--chown", copy(Some(chown.clone())))] {
            measure(&format!("{round} copy {name}"), || drop(file::apply(&op, &inputs, &trees, &task::Cancel::new()).expect("a copy")));
        }
        let view = trees.view(inputs[1].as_ref().expect("set above")).expect("a view");
        let mut records = treehash::Records::new();
        measure(&format!("{round} digest"), || drop(records.checksum(&view, "/", &treehash::Options::default()).expect("a digest")));
        measure(&format!("{round} {} KB of records", records.encode().len() / 1024), || drop(records.encode()));
        trees.0.empty_trash().expect("disk works");
    }
    // As a long Dockerfile of small copies: each on top of the one before, stacks of at most 100.
    let mut stack = vec![source(&trees.0)];
    measure("chain of 1000 file ops", || {
        for number in 0..1000 {
            let kind = FileActionKind::Mkfile {
                path: format!("/d{}/new{number}", number % 300),
                mode: 0o644,
                data: "content".into(),
                owner: None,
                timestamp: -1,
            };
            let op = FileOp { actions: vec![FileAction { input: Some(0), secondary_input: None, output: Some(0), kind }] };
            let inputs = [Some(std::mem::take(&mut stack))];
            stack = file::apply(&op, &inputs, &trees, &task::Cancel::new()).expect("a file").remove(0);
            stack.truncate(100);
        }
    });
}
