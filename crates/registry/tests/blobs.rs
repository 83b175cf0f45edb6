//! Downloads over bad connections, and uploads.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use oci::{Descriptor, Digest, media};
use registry::{Payload, Pushed, RegistryError};
use support::{Act, Fake, Login, TestHolder, access, client, noise, open, read, status};

#[tokio::test]
async fn downloads_from_an_offset() {
    let fake = Fake::start().await;
    let data = noise(100_000);
    let blob = fake.add_blob("a", data.clone());
    let repository = open(&client(), &fake.reference("a"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), data);
    assert_eq!(read(&repository, &blob, 99_000).await.unwrap(), data[99_000..]);
    assert_eq!(read(&repository, &blob, 100_000).await.unwrap(), b"");
}

#[tokio::test]
async fn resumes_where_the_connection_broke() {
    let fake = Fake::start().await;
    let data = noise(1_000_000);
    let blob = fake.add_blob("a", data.clone());
    let mut cuts = vec![Act::Cut(1), Act::Reply(status(502, "")), Act::Cut(300_000), Act::Cut(200_000), Act::Cut(100_000)];
    fake.hook(move |_| cuts.pop().unwrap_or(Act::Pass));
    assert_eq!(read(&open(&client(), &fake.reference("a")), &blob, 0).await.unwrap(), data);
    let ranges: Vec<String> =
        fake.seen().iter().map(|s| s.headers.get("range").map_or(String::new(), |r| r.to_str().unwrap().into())).collect();
    assert_eq!(ranges, ["", "bytes=100000-", "bytes=300000-", "bytes=600000-", "bytes=600000-", "bytes=600001-"]);
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_an_error() {
    let fake = Fake::start().await;
    let blob = fake.add_blob("a", noise(1000));
    fake.hook(|seen| if seen.headers.contains_key("range") { Act::Hang } else { Act::Cut(10) });
    let error = read(&open(&client(), &fake.reference("a")), &blob, 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Request { .. }), "{error}");
    assert_eq!(fake.seen().len(), 5);
}

#[tokio::test]
async fn reads_on_where_ranges_are_ignored() {
    let fake = Fake::start().await;
    let data = noise(400_000);
    let blob = fake.add_blob("a", data.clone());
    let whole = data.clone();
    let mut first = true;
    fake.hook(move |_| {
        if std::mem::take(&mut first) {
            return Act::Cut(64 << 10);
        }
        // Answers from the start, in chunks that meet the place of the break.
        let chunks: Vec<_> = whole.chunks(1 << 14).map(|c| Ok(hyper::body::Frame::data(bytes::Bytes::copy_from_slice(c)))).collect();
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(chunks));
        Act::Reply(http::Response::new(http_body_util::BodyExt::boxed_unsync(body)))
    });
    assert_eq!(read(&open(&client(), &fake.reference("a")), &blob, 0).await.unwrap(), data);
}

#[tokio::test]
async fn takes_no_more_than_the_size() {
    let fake = Fake::start().await;
    let mut blob = fake.add_blob("a", noise(1000));
    blob.size = 999;
    let error = read(&open(&client(), &fake.reference("a")), &blob, 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn redirects_lose_the_credentials() {
    let (fake, cdn) = (Fake::start().await, Fake::start().await);
    fake.login(Login::Basic("me", "s3cret"));
    let data = noise(1000);
    let blob = cdn.add_blob("a", data.clone());
    let target = format!("http://{}", cdn.host());
    fake.hook(move |seen| match seen.headers.contains_key("authorization") {
        true => Act::Reply(
            http::Response::builder()
                .status(307)
                .header("Location", format!("{target}{}?X-Sig=1", seen.path))
                .body(support::full("".into()))
                .unwrap(),
        ),
        false => Act::Pass,
    });
    let repository = client().repository(&fake.reference("a"), access(&[TestHolder::with_login("one", "me", "s3cret")]));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), data);
    let at_cdn = cdn.seen();
    assert_eq!((at_cdn.len(), at_cdn[0].headers.get("authorization")), (1, None));
}

#[tokio::test]
async fn redirects_end() {
    let fake = Fake::start().await;
    let blob = fake.add_blob("a", noise(10));
    fake.hook(|seen| {
        Act::Reply(http::Response::builder().status(302).header("Location", &seen.path).body(support::full("".into())).unwrap())
    });
    let error = read(&open(&client(), &fake.reference("a")), &blob, 0).await.map(|_| ()).unwrap_err();
    assert!(fault::chain(&error).ends_with("stopped after 10 redirects"), "{}", fault::chain(&error));
}

#[tokio::test]
async fn no_more_than_four_at_a_time() {
    let fake = Fake::start().await;
    {
        let mut state = fake.state.lock().unwrap();
        (state.gather, state.delay) = (4, Duration::from_millis(30));
    }
    let blob = fake.add_blob("a", noise(10));
    let repository = open(&client(), &fake.reference("a"));
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let (repository, blob) = (repository.clone(), blob.clone());
            tokio::spawn(async move { read(&repository, &blob, 0).await.map(|_| ()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(fake.state.lock().unwrap().most, 4);
}

#[tokio::test]
async fn uploads_once() {
    let fake = Fake::start().await;
    let data = noise(3 << 20);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&data).unwrap();
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &data);
    let repository = open(&client(), &fake.reference("a"));
    let payload = Payload::File { file: Arc::new(file), offset: 0, size: data.len() as u64 };
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let heard = most.clone();
    let progress: registry::Progress = Arc::new(move |bytes| heard.store(bytes, std::sync::atomic::Ordering::SeqCst));
    assert_eq!(repository.push_blob(&blob, payload.clone(), Some(progress)).await.unwrap(), Pushed::Uploaded);
    assert_eq!(most.load(std::sync::atomic::Ordering::SeqCst), data.len() as u64);
    assert_eq!(repository.push_blob(&blob, payload, None).await.unwrap(), Pushed::Existed);
    assert_eq!((fake.count("POST", "uploads"), fake.count("PUT", "uploads")), (1, 1));
    let put = fake.seen().into_iter().find(|s| s.method == "PUT").unwrap();
    assert_eq!(put.headers["content-length"], data.len().to_string());
    assert_eq!(support::parameter(&put.query, "_state").as_deref(), Some("secret"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), data);
}

#[tokio::test]
async fn one_blob_for_several_is_sent_once() {
    let fake = Fake::start().await;
    let data = noise(1 << 20);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &data);
    let client = client();
    let open = || open(&client, &fake.reference("a"));
    let (one, other) = (open(), open());
    let payload = Payload::Bytes(data);
    let (first, second) = tokio::join!(one.push_blob(&blob, payload.clone(), None), other.push_blob(&blob, payload, None));
    assert_eq!([first.unwrap(), second.unwrap()], [Pushed::Uploaded, Pushed::Existed]);
    assert_eq!(fake.count("PUT", "uploads"), 1);
}

#[tokio::test]
async fn one_blob_for_two_repositories_is_sent_once() {
    let fake = Fake::start().await;
    let data = noise(1 << 20);
    let blob = Descriptor::of(media::OCI_LAYER_GZIP, &data);
    let client = client();
    let (one, other) = (open(&client, &fake.reference("a")), open(&client, &fake.reference("b")));
    let payload = Payload::Bytes(data.clone());
    let (first, second) = tokio::join!(one.push_blob(&blob, payload.clone(), None), other.push_blob(&blob, payload, None));
    assert_eq!([first.unwrap(), second.unwrap()], [Pushed::Uploaded, Pushed::Mounted]);
    assert_eq!(fake.count("PUT", "uploads"), 1);
    assert_eq!(read(&other, &blob, 0).await.unwrap(), data);
}

#[tokio::test]
async fn a_registry_that_mounts_nothing_gets_it_for_each_repository() {
    let fake = Fake::start().await;
    fake.hook(|seen| if seen.query.contains("mount=") { Act::Reply(status(405, "")) } else { Act::Pass });
    let blob = Descriptor::of(media::OCI_LAYER, b"data");
    let client = client();
    let (one, other) = (open(&client, &fake.reference("a")), open(&client, &fake.reference("b")));
    let payload = Payload::Bytes("data".into());
    let (first, second) = tokio::join!(one.push_blob(&blob, payload.clone(), None), other.push_blob(&blob, payload, None));
    assert_eq!([first.unwrap(), second.unwrap()], [Pushed::Uploaded, Pushed::Uploaded]);
}

#[tokio::test]
async fn an_upload_that_broke_starts_over() {
    let fake = Fake::start().await;
    let blob = Descriptor::of(media::OCI_LAYER, b"data");
    let mut faults = vec![Act::Hang, Act::Reply(status(500, ""))];
    fake.hook(move |seen| if seen.method == "PUT" { faults.pop().unwrap_or(Act::Pass) } else { Act::Pass });
    let repository = open(&client(), &fake.reference("a"));
    assert_eq!(repository.push_blob(&blob, Payload::Bytes("data".into()), None).await.unwrap(), Pushed::Uploaded);
    assert_eq!(fake.count("POST", "uploads"), 3);
}

#[tokio::test]
async fn a_wrong_upload_is_refused_with_the_registrys_words() {
    let fake = Fake::start().await;
    let mut blob = Descriptor::of(media::OCI_LAYER, b"data");
    blob.digest = Digest::of(b"else");
    let error = open(&client(), &fake.reference("a")).push_blob(&blob, Payload::Bytes("data".into()), None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("400 Bad Request: digest invalid: provided digest did not match uploaded content"), "{text}");
    assert!(text.contains("_state=REDACTED") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn mounts_where_the_source_has_it() {
    let fake = Fake::start().await;
    fake.login(Login::Bearer { anonymous: false, user: "me", secret: "s3cret", get: true });
    let blob = fake.add_blob("from", noise(10));
    let repository = client().repository(&fake.reference("to"), access(&[TestHolder::with_login("one", "me", "s3cret")]));
    assert_eq!(repository.take(&blob, Some("elsewhere")).await.unwrap(), None);
    assert_eq!(repository.take(&blob, None).await.unwrap(), None);
    assert_eq!(repository.take(&blob, Some("from")).await.unwrap(), Some(Pushed::Mounted));
    assert_eq!(repository.take(&blob, Some("from")).await.unwrap(), Some(Pushed::Existed));
    let token = fake.seen().into_iter().filter(|s| s.path == "/token").map(|s| s.query).find(|q| q.contains("from"));
    assert!(
        token.is_some_and(|q| q.contains("repository%3Afrom%3Apull&") || q.ends_with("repository%3Ato%3Apull%2Cpush")),
        "the token reads the source too"
    );
}

#[tokio::test]
async fn manifests_are_put_once_under_their_tag() {
    let fake = Fake::start().await;
    let repository = open(&client(), &fake.reference("a"));
    let manifest = Descriptor::of(media::OCI_MANIFEST, b"{}");
    for (tag, want) in
        [(Some("v1"), Pushed::Uploaded), (Some("v1"), Pushed::Existed), (None, Pushed::Existed), (Some("v2"), Pushed::Uploaded)]
    {
        assert_eq!(repository.push_manifest(&manifest, "{}".into(), tag).await.unwrap(), want, "{tag:?}");
    }
    let found = repository.resolve(&fake.reference("a:v2")).await.unwrap();
    assert_eq!(found, manifest);
}
