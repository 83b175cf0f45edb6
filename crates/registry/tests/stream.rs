//! Uploads of blobs that are still being made.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use oci::{Descriptor, media};
use registry::{Payload, Pushed, RegistryError, Repository};
use support::{Act, Fake, Login, TestHolder, access, client, noise, open, read, status};
use tokio::sync::{mpsc, oneshot};

/// A blob that grows as a test says.
struct Making {
    chunks: Option<mpsc::Sender<io::Result<Bytes>>>,
    whole: Option<oneshot::Sender<Descriptor>>,
}

type Pushing = tokio::task::JoinHandle<Result<Option<Pushed>, RegistryError>>;

fn making() -> (Making, impl Stream<Item = io::Result<Bytes>> + Send + 'static, impl Future<Output = Option<Descriptor>> + Send) {
    let (chunks, queue) = mpsc::channel(1);
    let (whole, known) = oneshot::channel();
    let stream = futures_util::stream::unfold(queue, |mut queue: mpsc::Receiver<_>| async { Some((queue.recv().await?, queue)) });
    (Making { chunks: Some(chunks), whole: Some(whole) }, stream, async { known.await.ok() })
}

fn push(repository: &Repository) -> (Making, Pushing) {
    let (making, chunks, whole) = making();
    let repository = repository.clone();
    (making, tokio::spawn(async move { repository.push_stream(media::OCI_LAYER_GZIP, chunks, whole).await }))
}

impl Making {
    async fn write(&self, data: &[u8]) -> bool {
        self.chunks.as_ref().unwrap().send(Ok(Bytes::copy_from_slice(data))).await.is_ok()
    }

    fn end(&mut self, blob: &Descriptor) {
        self.whole.take().unwrap().send(blob.clone()).unwrap();
        self.chunks = None;
    }
}

fn blob(data: &[u8]) -> Descriptor {
    Descriptor::of(media::OCI_LAYER_GZIP, data)
}

#[tokio::test]
async fn what_grows_arrives_in_one_upload() {
    let fake = Fake::start().await;
    fake.login(Login::Bearer { anonymous: false, user: "me", secret: "s3cret", get: true });
    let repository = client().repository(&fake.reference("a"), access(&[TestHolder::with_login("one", "me", "s3cret")]));
    let data = noise(3_000_000);
    let (mut making, pushing) = push(&repository);
    for part in data.chunks(400_000) {
        assert!(making.write(part).await);
    }
    making.end(&blob(&data));
    assert_eq!(pushing.await.unwrap().unwrap(), Some(Pushed::Uploaded));
    assert_eq!(read(&repository, &blob(&data), 0).await.unwrap(), data);
    let patch = fake.seen().into_iter().find(|seen| seen.method == "PATCH").unwrap();
    assert_eq!((patch.headers["transfer-encoding"].to_str().unwrap(), patch.headers.get("content-length")), ("chunked", None));
    assert!(fake.seen().iter().any(|seen| seen.method == "PUT" && seen.query.contains("_state=patched")));
    assert_eq!((fake.count("PATCH", "uploads"), fake.count("PUT", "uploads")), (1, 1));
}

#[tokio::test]
async fn what_is_there_already_is_not_sent_to_the_end() {
    let fake = Fake::start().await;
    let data = noise(100_000);
    fake.add_blob("a", data.clone());
    let (mut making, pushing) = push(&open(&client(), &fake.reference("a")));
    assert!(making.write(&data[..50_000]).await);
    // No more comes: only what is known of the whole can end it.
    making.whole.take().unwrap().send(blob(&data)).unwrap();
    assert_eq!(pushing.await.unwrap().unwrap(), Some(Pushed::Existed));
    assert_eq!((fake.count("PUT", "uploads"), fake.count("DELETE", "uploads")), (0, 1));
}

#[tokio::test]
async fn what_is_given_up_leaves_no_upload() {
    let fake = Fake::start().await;
    let (making, pushing) = push(&open(&client(), &fake.reference("a")));
    assert!(making.write(&noise(50_000)).await);
    let Making { chunks, whole } = making;
    drop(whole);
    assert_eq!(pushing.await.unwrap().unwrap(), None);
    drop(chunks);
    let state = fake.state.lock().unwrap();
    assert!(state.uploads.is_empty() && state.blobs.is_empty());
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_before_the_blob_is_whole() {
    let fake = Fake::start().await;
    fake.hook(|seen| if seen.method == "PATCH" { Act::Break(50_000) } else { Act::Pass });
    let repository = open(&client(), &fake.reference("a"));
    let data = noise(1 << 20);
    let (making, pushing) = push(&repository);
    for part in data.chunks(1 << 16) {
        if !making.write(part).await {
            break;
        }
    }
    assert!(matches!(pushing.await.unwrap().unwrap_err(), RegistryError::Request { .. }));
    // As a whole it arrives.
    assert_eq!(repository.push_blob(&blob(&data), Payload::Bytes(data.clone()), None).await.unwrap(), Pushed::Uploaded);
    assert_eq!(read(&repository, &blob(&data), 0).await.unwrap(), data);
}

#[tokio::test]
async fn a_registry_that_takes_no_streams_gets_the_whole() {
    let fake = Fake::start().await;
    fake.hook(|seen| if seen.method == "PATCH" { Act::Reply(status(411, "")) } else { Act::Pass });
    let repository = open(&client(), &fake.reference("a"));
    let data = noise(1 << 20);
    let (making, pushing) = push(&repository);
    making.write(&data).await;
    assert!(matches!(pushing.await.unwrap().unwrap_err(), RegistryError::Status { .. }));
    assert_eq!(repository.push_blob(&blob(&data), Payload::Bytes(data), None).await.unwrap(), Pushed::Uploaded);
}

#[tokio::test]
async fn a_blob_that_somebody_else_sends_is_left_to_them() {
    let fake = Fake::start().await;
    let (begun, mut told) = mpsc::unbounded_channel();
    let (end, ending) = oneshot::channel();
    let mut ending = Some(ending);
    fake.hook(move |seen| {
        if seen.method != "PUT" {
            return Act::Pass;
        }
        begun.send(()).unwrap();
        ending.take().map_or(Act::Pass, Act::Wait)
    });
    let repository = open(&client(), &fake.reference("a"));
    let data = noise(100_000);
    let (mut making, pushing) = push(&repository);
    assert!(making.write(&data).await);
    let other = {
        let (repository, blob, payload) = (repository.clone(), blob(&data), Payload::Bytes(data.clone()));
        tokio::spawn(async move { repository.push_blob(&blob, payload, None).await })
    };
    told.recv().await.unwrap();
    making.end(&blob(&data));
    assert_eq!(pushing.await.unwrap().unwrap(), None);
    end.send(()).unwrap();
    assert_eq!(other.await.unwrap().unwrap(), Pushed::Uploaded);
}

/// Debian's registry takes them, too.
#[tokio::test]
async fn distribution_takes_streams() {
    let server = Arc::new(tokio::task::spawn_blocking(testkit::Registry::start).await.unwrap());
    let repository = open(&client(), &format!("{}/team/app", server.host()).parse().unwrap());
    let data = noise(5 << 20);
    let (mut making, pushing) = push(&repository);
    for part in data.chunks(1 << 20) {
        assert!(making.write(part).await);
    }
    making.end(&blob(&data));
    assert_eq!(pushing.await.unwrap().unwrap(), Some(Pushed::Uploaded));
    assert_eq!(read(&repository, &blob(&data), 0).await.unwrap(), data);
}
