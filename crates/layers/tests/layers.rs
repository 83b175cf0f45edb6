#![allow(clippy::unwrap_used)]
mod common;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Archive, Home, image, listing, pull};
use layers::{Layer, Layers, Properties, Sharing};
use progress::Reporter;
use snapshot::Follow;
use task::Cancel;

fn properties(text: &str) -> Properties {
    Properties::new(text)
}

/// A layer with one file more.
fn step(layers: &Layers, parent: Option<&Layer>, path: &str, text: &str) -> Layer {
    let mut draft = layers.draft(parent, properties(path)).unwrap();
    let mut editor = draft.editor().unwrap();
    if let Some(dir) = std::path::Path::new(path).parent() {
        editor.mkdir_all(dir, 0o755).unwrap();
    }
    editor.write_file(path, 0o644).unwrap().write_all(text.as_bytes()).unwrap();
    drop(editor);
    draft.commit().unwrap()
}

#[tokio::test]
async fn layers_come_back_after_a_restart() {
    let home = Home::new();
    let layers = home.open();
    let base = step(&layers, None, "/etc/one", "1");
    let top = step(&layers, Some(&base), "/etc/two", "2");
    top.meta_put("checksum", b"abc");
    let (base_id, top_id) = (base.id(), top.id());
    assert_eq!(top.parents(), std::slice::from_ref(&base));
    assert_eq!(listing(&top.view().unwrap()), ["/etc 755 /", "/etc/one 644 1", "/etc/two 644 2"]);
    layers.flush().await.unwrap();
    drop((base, top, layers));

    let layers = home.open();
    let top = layers.get(&top_id).unwrap().unwrap();
    assert_eq!(top.parents()[0].id(), base_id);
    assert_eq!(top.description(), "/etc/two");
    assert_eq!(top.record_type(), "regular");
    assert_eq!(top.meta_get("checksum").unwrap().as_deref(), Some(&b"abc"[..]));
    assert_eq!(listing(&top.view().unwrap()).len(), 3);
    let unknown = layers.draft(None, properties("")).unwrap().commit().unwrap().id();
    assert!(layers.get(&unknown).unwrap().is_some());
    assert!(layers.get(&"0".repeat(25).parse().unwrap()).unwrap().is_none());
}

#[tokio::test]
async fn a_power_cut_takes_what_was_not_synced() {
    let home = Home::new();
    let layers = home.open_in_boot("one");
    let base = step(&layers, None, "/a", "1");
    layers.sync().await.unwrap();
    let top = step(&layers, Some(&base), "/b", "2");
    let (base_id, top_id) = (base.id(), top.id());
    layers.flush().await.unwrap();
    drop((base, top, layers));
    let layers = home.open_in_boot("one");
    assert!(layers.get(&top_id).unwrap().is_some());
    drop(layers);
    let layers = home.open_in_boot("two");
    assert!(layers.get(&base_id).unwrap().is_some());
    assert!(layers.get(&top_id).unwrap().is_none());
    assert_eq!(layers.trees().trees().unwrap().len(), 1, "its tree is gone, too");
}

#[tokio::test]
async fn images_are_pulled_lazily_and_once() {
    let home = Home::new();
    let layers = home.open();
    let archives = [
        Archive::default().dir("etc/", 0o755).file("etc/a", "1").file("etc/b", "1").dir("tmp/", 0o1777).end(),
        Archive::default().file("etc/.wh.a", "").file("etc/c", "2").file("tmp/x", "2").end(),
    ];
    let (list, source) = image(&archives);
    let source = Arc::new(source);
    let layer = layers.from_image(list.clone(), source.clone()).unwrap().unwrap();
    assert!(!layer.is_realized());
    assert_eq!(source.fetches.load(Ordering::SeqCst), 0);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let layer = layer.clone();
            task::spawn("test", async move { layer.realize(&Cancel::new(), &Reporter::silent()).await })
        })
        .collect();
    for task in tasks {
        task.join().await.unwrap().unwrap();
    }
    assert_eq!(source.fetches.load(Ordering::SeqCst), 2, "each blob once");
    assert_eq!(
        listing(&layer.view().unwrap()),
        ["/etc 755 /", "/etc/b 644 1", "/etc/c 644 2", "/tmp 1777 /", "/tmp/x 644 2"],
        "implied directories look as below"
    );
    assert_eq!(layer.diff_id().unwrap(), list[1].diff_id);

    let again = layers.from_image(list, source.clone()).unwrap().unwrap();
    assert_eq!(again, layer);
    again.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(source.fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_broken_download_goes_on() {
    let home = Home::new();
    let layers = home.open();
    let noise: String = (0..60_000u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    let (list, source) = image(&[Archive::default().file("big", &noise).end()]);
    source.failures.store(1, Ordering::SeqCst);
    let source = Arc::new(source);
    let layer = layers.from_image(list, source.clone()).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(source.fetches.load(Ordering::SeqCst), 2);
    assert_eq!(source.served.load(Ordering::SeqCst), source.blobs[0].len(), "from where it broke off");
    assert_eq!(layer.view().unwrap().require("/big", Follow::No).unwrap().metadata().size, 60_000);
}

#[tokio::test]
async fn a_damaged_partial_download_starts_over() {
    let home = Home::new();
    let layers = home.open();
    let (list, source) = image(&[Archive::default().file("a", "text").end()]);
    let blob = &list[0].descriptor;
    let mut ingest = layers.content().ingest(&format!("layer {}", blob.digest), Some((blob.digest.clone(), blob.size))).unwrap();
    ingest.write(b"torn").unwrap();
    drop(ingest);
    let source = Arc::new(source);
    let layer = layers.from_image(list, source.clone()).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(source.fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let home = Home::new();
    let layers = home.open();
    let (mut list, source) = image(&[Archive::default().file("a", "1").end()]);
    list[0].diff_id = oci::Digest::of("something else");
    let source = Arc::new(source);
    let layer = layers.from_image(list.clone(), source.clone()).unwrap().unwrap();
    let error = layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap_err();
    assert!(error.to_string().contains("does not have the content"), "{error}");
    assert!(!layer.is_realized());

    let truth = list[0].descriptor.digest.clone();
    list[0].descriptor.digest = oci::Digest::of("other");
    let lying = common::Source { blobs: source.blobs.clone(), ..Default::default() };
    let layer = layers.from_image(list, Arc::new(lying)).unwrap().unwrap();
    let error = layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap_err();
    assert!(error.to_string().contains("no such blob"), "{error}");
    assert!(layers.content().has(&truth).unwrap().is_some(), "the true blob of the first try stays");
    assert!(layers.trees().trees().unwrap().is_empty());
}

#[tokio::test]
async fn merges_and_diffs() {
    let home = Home::new();
    let layers = home.open();
    let base = step(&layers, None, "/base", "b");
    let one = step(&layers, Some(&base), "/d/one", "1");
    let two = step(&layers, Some(&base), "/d/two", "2");
    let none = layers.merge(&[None, None], properties(""));
    assert!(none.is_none());
    assert_eq!(layers.merge(&[None, Some(one.clone())], properties("")).unwrap(), one);

    let both = layers.merge(&[Some(one.clone()), Some(two.clone())], properties("both")).unwrap();
    assert_eq!(listing(&both.view().unwrap()), ["/base 644 b", "/d 755 /", "/d/one 644 1", "/d/two 644 2"]);
    assert_eq!(both.chain().len(), 4, "as upstream lists the layers of an image: the base twice");

    assert!(layers.diff(Some(&one), Some(&one), properties("")).is_none());
    assert_eq!(layers.diff(None, Some(&one), properties("")).unwrap(), one);
    let added = layers.diff(Some(&base), Some(&one), properties("")).unwrap();
    assert_eq!(added.chain(), std::slice::from_ref(&one));
    assert_eq!(listing(&added.view().unwrap()), ["/d 755 /", "/d/one 644 1"]);

    let mut without = layers.draft(Some(&one), properties("")).unwrap();
    without.editor().unwrap().remove("/d/one").unwrap();
    let deletion = layers.diff(Some(&one), Some(&without.commit().unwrap()), properties("")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mounted = deletion.mount_spec().unwrap().mount_at(target.path()).unwrap();
    assert_eq!(std::fs::read_dir(target.path().join("d")).unwrap().count(), 0, "deletions of what is not there do not show");
    mounted.unmount().unwrap();
    let applied = layers.merge(&[Some(one.clone()), Some(deletion)], properties("")).unwrap();
    assert_eq!(listing(&applied.view().unwrap()), ["/base 644 b", "/d 755 /"], "but they are applied");

    let sideways = layers.diff(Some(&one), Some(&two), properties("")).unwrap();
    assert!(!sideways.is_realized());
    sideways.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    let applied = layers.merge(&[Some(one.clone()), Some(sideways)], properties("")).unwrap();
    assert_eq!(listing(&applied.view().unwrap()), listing(&two.view().unwrap()), "lower + diff = upper");
    let gone = layers.diff(Some(&one), None, properties("")).unwrap();
    gone.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    let emptied = layers.merge(&[Some(one), Some(gone)], properties("")).unwrap();
    assert!(listing(&emptied.view().unwrap()).is_empty());
}

/// What a mount of the draft leaves, as a step would.
fn run(layers: &Layers, parent: &Layer, work: impl FnOnce(&std::path::Path)) -> Layer {
    let draft = layers.draft(Some(parent), properties("run")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mounted = draft.mount_spec().unwrap().mount_at(target.path()).unwrap();
    work(target.path());
    mounted.unmount().unwrap();
    draft.commit().unwrap()
}

#[tokio::test]
async fn directories_that_steps_make_do_not_hide_others_in_merges() {
    let home = Home::new();
    let layers = home.open();
    let base = step(&layers, None, "/x/old", "b");
    let one = run(&layers, &base, |root| {
        std::fs::create_dir(root.join("out")).unwrap();
        std::fs::write(root.join("out/a"), "1").unwrap();
    });
    let two = run(&layers, &base, |root| {
        std::fs::create_dir(root.join("out")).unwrap();
        std::fs::write(root.join("out/b"), "2").unwrap();
        // Really hides what is below.
        std::fs::remove_dir_all(root.join("x")).unwrap();
        std::fs::create_dir(root.join("x")).unwrap();
        std::fs::write(root.join("x/new"), "2").unwrap();
    });
    let three = step(&layers, Some(&base), "/x/third", "3");
    let merged = layers.merge(&[Some(three), Some(one), Some(two.clone())], properties("")).unwrap();
    merged.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    let found: Vec<String> = listing(&merged.view().unwrap()).into_iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(found, ["/out", "/out/a", "/out/b", "/x", "/x/new", "/x/third"]);
    let alone: Vec<String> = listing(&two.view().unwrap()).into_iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(alone, ["/out", "/out/b", "/x", "/x/new"]);
}

/// A registry that fails, while another build names one that does not.
struct Overtaken {
    layers: Layers,
    image: Vec<layers::ImageLayer>,
    by: Arc<common::Source>,
}

#[async_trait::async_trait]
impl layers::BlobSource for Overtaken {
    async fn fetch(&self, _: &oci::Descriptor, _: u64) -> fault::Result<layers::ByteStream> {
        self.layers.from_image(self.image.clone(), self.by.clone()).unwrap();
        Err(fault::Fault::new(fault::Kind::Denied, "denied"))
    }
}

#[tokio::test]
async fn a_layer_that_one_registry_fails_to_give_comes_from_another() {
    let archives = [Archive::default().file("a", "1").end(), Archive::default().file("b", "2").end()];
    let (image, good) = image(&archives);
    let good = Arc::new(good);
    let home = Home::new();
    let layers = home.open();
    let broken = layers.from_image(image.clone(), Arc::new(common::Source::default())).unwrap().unwrap();
    let fault = broken.realize(&Cancel::new(), &Reporter::silent()).await.unwrap_err();
    assert!(fault.to_string().contains("no such blob"), "{fault}");
    assert!(!broken.missing().unwrap().is_empty(), "who failed is not asked again");
    let whole = layers.from_image(image, good.clone()).unwrap().unwrap();
    assert_eq!(whole, broken, "equal digests are one layer");
    whole.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(listing(&broken.view().unwrap()), ["/a 644 1", "/b 644 2"]);

    let (other, serves) = common::image(&[Archive::default().file("c", "3").end()]);
    let overtaken = Overtaken { layers: layers.clone(), image: other.clone(), by: Arc::new(serves) };
    let layer = layers.from_image(other, Arc::new(overtaken)).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(listing(&layer.view().unwrap()), ["/c 644 3"]);
}

/// Until the file system's clock has gone on since a layer was made: it stands still for milliseconds at a time.
fn next_tick(dir: &std::path::Path, since: &Layer) {
    use std::os::unix::fs::MetadataExt as _;
    let latest = since.view().unwrap().require("/", Follow::No).unwrap().metadata().mtime;
    let now = || {
        let new = tempfile::tempfile_in(dir).unwrap().metadata().unwrap();
        (new.mtime(), new.mtime_nsec() as u32)
    };
    while now() <= (latest.seconds, latest.nanos) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[tokio::test]
async fn what_a_step_left_as_it_was_is_no_part_of_a_diff() {
    let home = Home::new();
    let layers = home.open();
    let mut base = step(&layers, None, "/etc/a", "1");
    for (path, text) in [("/tmp/x", "2"), ("/var/log/l", "3"), ("/moved", "4")] {
        base = step(&layers, Some(&base), path, text);
    }
    let after = run(&layers, &base, |root| {
        next_tick(home.dir.path(), &base);
        let times = |dir: &str| root.join(dir).metadata().unwrap().modified().unwrap();
        let restore = |dir: &str, time| std::fs::File::open(root.join(dir)).unwrap().set_modified(time).unwrap();
        // A mount point that came and went.
        let before = times("etc");
        std::fs::write(root.join("etc/stub"), "").unwrap();
        std::fs::remove_file(root.join("etc/stub")).unwrap();
        restore("etc", before);
        // Files that came and went; the directory's time tells.
        std::fs::write(root.join("tmp/y"), "").unwrap();
        std::fs::remove_file(root.join("tmp/y")).unwrap();
        std::fs::write(root.join("var/log/y"), "").unwrap();
        std::fs::remove_file(root.join("var/log/y")).unwrap();
        // Away and back.
        std::fs::rename(root.join("moved"), root.join("elsewhere")).unwrap();
        std::fs::rename(root.join("elsewhere"), root.join("moved")).unwrap();
        std::fs::write(root.join("new"), "5").unwrap();
    });
    let time = |layer: &Layer, path: &str| layer.view().unwrap().require(path, Follow::No).unwrap().metadata().mtime;
    assert_ne!(time(&base, "/tmp"), time(&after, "/tmp"), "in place the time still shows");
    assert_eq!(time(&base, "/etc"), time(&after, "/etc"));
    assert_eq!(listing(&after.view().unwrap()).len(), listing(&base.view().unwrap()).len() + 1);
    let diff = layers.diff(Some(&base), Some(&after), properties("")).unwrap();
    diff.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(listing(&diff.view().unwrap()), ["/new 644 5"]);
}

#[tokio::test]
async fn cells_are_shared_private_or_locked() {
    let home = Home::new();
    let layers = home.open();
    let cancel = Cancel::new();
    let cell = |sharing| layers.cell("key", None, sharing, properties("cache"), &cancel);
    let first = cell(Sharing::Shared).await.unwrap();
    std::fs::write(first.path().join("f"), "1").unwrap();
    first.meta_put("k", b"v");
    let second = cell(Sharing::Shared).await.unwrap();
    assert_eq!(first.id(), second.id());
    let private = cell(Sharing::Private).await.unwrap();
    assert_ne!(private.id(), first.id());
    drop(private);

    let waiting = {
        let (layers, cancel) = (layers.clone(), cancel.clone());
        task::spawn("test", async move { layers.cell("one", None, Sharing::Locked, properties(""), &cancel).await.map(|c| c.id()) })
    };
    let id = waiting.join().await.unwrap().unwrap();
    let locked = layers.cell("one", None, Sharing::Locked, properties(""), &cancel).await.unwrap();
    assert_eq!(locked.id(), id);
    let mut waiting = Box::pin(layers.cell("one", None, Sharing::Locked, properties(""), &cancel));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(locked);
    assert_eq!(waiting.await.unwrap().id(), id);

    let id = first.id();
    drop((first, second));
    layers.flush().await.unwrap();
    drop(layers);
    let layers = home.open();
    let again = layers.cell("key", None, Sharing::Shared, properties(""), &cancel).await.unwrap();
    let shared = if again.id() == id { again } else { layers.cell("key", None, Sharing::Private, properties(""), &cancel).await.unwrap() };
    assert_eq!(std::fs::read(shared.path().join("f")).unwrap(), b"1");
    assert_eq!(shared.meta_get("k").unwrap().as_deref(), Some(&b"v"[..]));
    layers.clear_cells("key", None).unwrap();
    let fresh = layers.cell("key", None, Sharing::Shared, properties(""), &cancel).await.unwrap();
    assert!(!fresh.path().join("f").exists());
}

/// Found by fuzzing.
#[tokio::test]
async fn layers_made_of_each_other_are_dropped() {
    let home = Home::new();
    let layers = home.open();
    let one = layers.draft(None, properties("one")).unwrap().commit().unwrap();
    let two = layers.draft(Some(&one), properties("two")).unwrap().commit().unwrap();
    let (id_of_one, id_of_two) = (one.id(), two.id());
    layers.flush().await.unwrap();
    drop((one, two, layers));
    let db = kv::Db::open(&home.dir.path().join("db"), kv::Options::default()).unwrap();
    const RECORDS: kv::Table<str, String> = kv::Table::new("layers.records");
    let record = db.get(&RECORDS, id_of_one.as_str()).unwrap().unwrap();
    let looping = record.replace("\"parent\":null", &format!("\"parent\":\"{id_of_two}\""));
    assert_ne!(looping, record);
    let mut batch = kv::Batch::new();
    batch.put(&RECORDS, id_of_one.as_str(), &looping);
    db.submit(batch);
    task::blocking(move || Ok(db.flush_blocking()?)).await.unwrap();
    let layers = home.open();
    for id in [&id_of_one, &id_of_two] {
        assert!(layers.get(id).unwrap().is_none());
    }
    assert!(layers.usage(&layers::UsageQuery::default()).unwrap().is_empty(), "their records are gone");
}

/// Two mounts of one overlay's upper directory hide files from each other.
#[tokio::test]
async fn a_cell_over_a_base_can_be_mounted_twice() {
    let home = Home::new();
    let layers = home.open();
    let base = pull(&layers, &[Archive::default().file("a", "1").end(), Archive::default().file("b", "2").end()]).await;
    base.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    let cancel = Cancel::new();
    let cell = || layers.cell("key", Some(&base), Sharing::Shared, properties("cache"), &cancel);
    let (first, second) = (cell().await.unwrap(), cell().await.unwrap());
    assert_eq!(first.id(), second.id());
    assert_eq!(listing(&second.view().unwrap()), ["/a 644 1", "/b 644 2"]);
    let (one, two) = (first.mount_spec().unwrap(), second.mount_spec().unwrap());
    assert!(matches!(&one, snapshot::MountSpec::Bind { readonly: false, .. }) && one == two, "{one:?} {two:?}");
    std::fs::write(first.path().join("a"), "changed").unwrap();
    assert_eq!(listing(&second.view().unwrap())[0], "/a 644 changed");
    assert_eq!(listing(&base.view().unwrap())[0], "/a 644 1", "the base is as it was");
}

#[tokio::test]
async fn an_image_without_changes_in_between_shares_its_tree() {
    let home = Home::new();
    let layers = home.open();
    let archive = Archive::default().file("a", "1").end();
    let first = pull(&layers, std::slice::from_ref(&archive)).await;
    let (mut list, mut source) = image(std::slice::from_ref(&archive));
    // The same content, compressed otherwise.
    let blob = bytes::Bytes::from(archive.clone());
    list[0].descriptor = oci::Descriptor::of(oci::media::OCI_LAYER, &blob);
    source.blobs = vec![blob];
    let source = Arc::new(source);
    let second = layers.from_image(list, source.clone()).unwrap().unwrap();
    assert_ne!(second, first);
    second.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(source.fetches.load(Ordering::SeqCst), 0, "no need to download");
    assert_eq!(second.stack().unwrap(), first.stack().unwrap());
}
