//! The base and a sample, from the apply to the pruned Job.

use job_handler_e2e::wait_for;
use serde_json::{Value, json};

use crate::fixture::{PATIENCE, RealCluster, scenario, shell_job};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples/builds.yaml");

/// A Job of the sample's policy, in one group with all others.
fn build(name: &str, script: &str) -> Value {
    let mut job = shell_job(name, script);
    job["metadata"]["labels"] = json!({
        "app": "image-build",
        "build.notifi.network/third-party-id": "acme", "build.notifi.network/parser-id": "7",
    });
    // The policy's default would be all processors of a small machine.
    job["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}});
    job["spec"]["backoffLimit"] = 6.into();
    job
}

#[test]
fn the_base_stamps_limits_harvests_and_prunes_jobs_of_a_sample() {
    scenario("base_install", |real| async move {
        real.cluster.kubectl(&["apply", "-f", SAMPLE]).await.unwrap();
        real.wait_policy("ci", "builds").await;
        // Bytes that are no UTF-8 and no whole line, as containerd writes them in its own format.
        let script = "printf 'first\\n\\n\\377\\376 no text\\n'; sleep 5; printf 'no line end'";
        real.create("ci", &build("first", script)).await.unwrap();
        let stamped = real.get("ci", "job/first").await.unwrap();
        let spec = &stamped["spec"];
        assert_eq!((&spec["backoffLimit"], &spec["activeDeadlineSeconds"]), (&json!(0), &json!(1800)));
        assert_eq!(spec["template"]["metadata"]["labels"]["team"], "build");
        // The second of the group while the first one runs.
        let refused = real.create("ci", &build("second", "true")).await.unwrap_err();
        assert!(refused.contains("one-per-parser"), "{refused}");

        let (status, manifest) = real.wait_result("ci", "first").await;
        assert_eq!(status, "completed", "{manifest}");
        let log = real.stored_log("ci", "first").await;
        assert_eq!(log, b"first\n\n\xff\xfe no text\nno line end", "{manifest}");

        real.create("ci", &build("third", "true")).await.unwrap();
        wait_pruned(real, "first").await;
        let (status, _) = real.wait_result("ci", "third").await;
        assert_eq!(status, "completed");
        real.get("ci", "job/third").await.unwrap();
    });
}

async fn wait_pruned(real: &RealCluster, job: &str) {
    let job = format!("job/{job}");
    let pruned = async || match real.get("ci", &job).await {
        Err(error) if error.contains("NotFound") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_for(PATIENCE, "the older Job of the group to be deleted", pruned).await.unwrap();
}
