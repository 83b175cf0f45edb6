//! Challenges, tokens, and who may share them.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use oci::{Descriptor, media};
use registry::{Payload, Pushed, RegistryError};
use support::{Act, Fake, Login, TestHolder, access, client, manifest, open};

const BEARER: Login = Login::Bearer { anonymous: false, user: "me", secret: "s3cret", get: true };

fn some_manifest(fake: &Fake, repository: &str) -> Descriptor {
    let config = fake.add_blob(repository, &b"{}"[..]);
    fake.add_manifest(repository, "latest", media::OCI_MANIFEST, manifest(&config, &[]))
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once() {
    let fake = Fake::start().await;
    fake.login(Login::Bearer { anonymous: true, user: "", secret: "x", get: true });
    some_manifest(&fake, "a");
    let reference = fake.reference("a:latest");
    let repository = open(&client(), &reference);
    let found = repository.resolve(&reference).await.unwrap();
    repository.manifest(&found).await.unwrap();
    repository.manifest(&found).await.unwrap();
    assert_eq!(fake.count("GET", "/token"), 1);
    assert_eq!(
        fake.seen().iter().filter(|s| s.path != "/token" && !s.headers.contains_key("authorization")).count(),
        1,
        "one request without a token"
    );
}

#[tokio::test]
async fn logins_work_by_get_and_by_post() {
    for get in [true, false] {
        let fake = Fake::start().await;
        fake.login(Login::Bearer { anonymous: false, user: "me", secret: "s3cret", get });
        some_manifest(&fake, "a");
        let reference = fake.reference("a:latest");
        let holder = TestHolder::with_login("one", "me", "s3cret");
        client().repository(&reference, access(&[holder])).resolve(&reference).await.unwrap();
        assert_eq!(fake.count("POST", "/token"), usize::from(!get));
    }
}

#[tokio::test]
async fn basic_logins_work() {
    let fake = Fake::start().await;
    fake.login(Login::Basic("me", "s3cret"));
    some_manifest(&fake, "a");
    let reference = fake.reference("a:latest");
    let holder = TestHolder::with_login("one", "me", "s3cret");
    client().repository(&reference, access(&[holder])).resolve(&reference).await.unwrap();
    let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::PullDenied { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_login_is_denied_and_the_next_holder_tried() {
    let fake = Fake::start().await;
    fake.login(BEARER);
    some_manifest(&fake, "a");
    let reference = fake.reference("a:latest");
    let (wrong, right) = (TestHolder::with_login("one", "me", "wrong"), TestHolder::with_login("two", "me", "s3cret"));
    let client = client();
    let error = client.repository(&reference, access(std::slice::from_ref(&wrong))).resolve(&reference).await.unwrap_err();
    let text = fault::chain(&error);
    assert!(
        text.starts_with(
            "pull access denied, repository does not exist or may require authorization: failed to authorize: failed to fetch oauth token"
        ),
        "{text}"
    );
    assert!(text.contains("incorrect username or password"), "{text}");
    client.repository(&reference, access(&[wrong, right])).resolve(&reference).await.unwrap();
}

#[tokio::test]
async fn clients_fetch_tokens_themselves_and_share_them_by_key() {
    let fake = Fake::start().await;
    fake.login(BEARER);
    some_manifest(&fake, "a");
    fake.state.lock().unwrap().tokens.insert("theirs".into(), "repository:a:pull,push".into());
    let reference = fake.reference("a:latest");
    let client = client();
    let (one, same, other) = (
        TestHolder::with_key("1", [1; 32], "theirs"),
        TestHolder::with_key("2", [1; 32], "theirs"),
        TestHolder::with_key("3", [3; 32], "theirs"),
    );
    for holder in [&one, &one, &same, &other] {
        client.repository(&reference, access(std::slice::from_ref(holder))).resolve(&reference).await.unwrap();
    }
    let fetched = [&one, &same, &other].map(|h| h.fetched.load(Ordering::SeqCst));
    assert_eq!(fetched, [1, 0, 1], "the same key shares the token, another does not");
    assert_eq!(one.asked.load(Ordering::SeqCst), 0, "no login is asked for");

    let blob = fake.add_blob("a", &b"x"[..]);
    for holder in [&one, &same] {
        let pushed =
            client.repository(&reference, access(std::slice::from_ref(holder))).push_blob(&blob, Payload::Bytes("x".into()), None).await;
        assert_eq!(pushed.unwrap(), Pushed::Existed);
    }
    let fetched = [&one, &same].map(|h| h.fetched.load(Ordering::SeqCst));
    assert_eq!(fetched, [2, 1], "a token that may push is nobody else's");
}

#[tokio::test]
async fn a_token_that_died_is_replaced() {
    let fake = Fake::start().await;
    fake.login(BEARER);
    some_manifest(&fake, "a");
    let reference = fake.reference("a:latest");
    let repository = client().repository(&reference, access(&[TestHolder::with_login("one", "me", "s3cret")]));
    repository.resolve(&reference).await.unwrap();
    fake.state.lock().unwrap().tokens.clear();
    repository.resolve(&reference).await.unwrap();
    assert_eq!(fake.count("GET", "/token"), 2);
}

#[tokio::test]
async fn insufficient_scope_ends_it() {
    let fake = Fake::start().await;
    fake.login(Login::Bearer { anonymous: true, user: "", secret: "x", get: true });
    let reference = fake.reference("a:latest");
    let blob = Descriptor::of(media::OCI_LAYER, b"x");
    let error = open(&client(), &reference).push_blob(&blob, Payload::Bytes("x".into()), None).await.unwrap_err();
    let text = fault::chain(&error);
    assert_eq!(
        text,
        "push access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"
    );
    assert!(fake.count("GET", "/token") <= 3);
}

#[tokio::test]
async fn many_at_once_fetch_one_token() {
    let fake = Fake::start().await;
    fake.login(BEARER);
    some_manifest(&fake, "a");
    let reference = fake.reference("a:latest");
    let repository = client().repository(&reference, access(&[TestHolder::with_login("one", "me", "s3cret")]));
    repository.resolve(&reference).await.unwrap();
    fake.state.lock().unwrap().tokens.clear();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (repository, reference) = (repository.clone(), reference.clone());
            tokio::spawn(async move { repository.resolve(&reference).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let fetched = fake.count("GET", "/token");
    assert!(fetched <= 4, "{fetched} tokens for 20 requests");
}

#[tokio::test]
async fn unknown_schemes_and_broken_challenges_are_named() {
    for (challenge, text) in [
        ("Negotiate", "failed to find supported auth scheme"),
        ("Bearer service=\"x\"", "a token challenge without a realm"),
        ("Bearer realm=\"ftp://x\"", "an unusable token realm"),
    ] {
        let fake = Fake::start().await;
        fake.hook(move |_| {
            Act::Reply(
                http::Response::builder()
                    .status(401)
                    .header("WWW-Authenticate", challenge)
                    .body(support::full(bytes::Bytes::new()))
                    .unwrap(),
            )
        });
        let reference = fake.reference("a:latest");
        let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
        assert!(fault::chain(&error).contains(text), "{}", fault::chain(&error));
    }
}
