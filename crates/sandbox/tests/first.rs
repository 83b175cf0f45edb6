mod world;
use world::*;

#[tokio::test]
async fn a_program_runs_and_its_code_and_output_arrive() {
    let world = World::new(|settings| Ok(Box::new(sandbox::Builtin::new(settings)?)));
    let outcome = world.sh("echo hello; echo sorry >&2; exit 3").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.exit.code), ("hello\n", "sorry\n", 3));
}
