//! How containers end: at a deadline, for their memory, before they started.

use serde_json::json;

use crate::fixture::{scenario, shell_job};

#[test]
fn a_process_that_exits_with_0_at_its_deadline_leaves_its_last_words() {
    scenario("exit_0_on_sigterm", |real| async move {
        let ns = real.cluster.namespace("deadline").await.unwrap();
        real.harvest_everything(&ns).await;
        let script = "trap 'echo last words; exit 0' TERM; echo started; while :; do sleep 1; done";
        let mut job = shell_job("polite", script);
        job["spec"]["activeDeadlineSeconds"] = 8.into();
        real.create(&ns, &job).await.unwrap();
        let (status, manifest) = real.wait_result(&ns, "polite").await;
        println!("polite: {manifest:#}");
        assert_eq!(status, "failed", "{manifest}");
        assert!(manifest.to_string().contains("DeadlineExceeded"), "{manifest}");
        let log = real.stored_log(&ns, "polite").await;
        assert_eq!(String::from_utf8_lossy(&log), "started\nlast words\n", "{manifest}");
    });
}

#[test]
fn a_process_that_is_killed_for_its_memory_is_reported_as_such() {
    scenario("oom_kill", |real| async move {
        let ns = real.cluster.namespace("oom").await.unwrap();
        real.harvest_everything(&ns).await;
        let mut job =
            shell_job("greedy", "echo allocating; exec dd if=/dev/zero of=/dev/null bs=256M count=1");
        job["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
        real.create(&ns, &job).await.unwrap();
        let (status, manifest) = real.wait_result(&ns, "greedy").await;
        println!("greedy: {manifest:#}");
        assert_eq!(status, "failed", "{manifest}");
        assert!(manifest.to_string().contains("OOMKilled"), "{manifest}");
        let log = real.stored_log(&ns, "greedy").await;
        assert_eq!(String::from_utf8_lossy(&log), "allocating\n", "{manifest}");
    });
}

#[test]
fn a_job_whose_image_cannot_be_pulled_leaves_a_result_at_its_deadline() {
    scenario("no_image", |real| async move {
        let ns = real.cluster.namespace("no-image").await.unwrap();
        real.harvest_everything(&ns).await;
        let mut job = shell_job("nothing", "true");
        job["spec"]["template"]["spec"]["containers"][0]["image"] = "registry.invalid/nothing:1".into();
        job["spec"]["activeDeadlineSeconds"] = 15.into();
        real.create(&ns, &job).await.unwrap();
        let (status, manifest) = real.wait_result(&ns, "nothing").await;
        println!("nothing: {manifest:#}");
        assert_eq!(status, "failed", "{manifest}");
        assert!(manifest.to_string().contains("DeadlineExceeded"), "{manifest}");
    });
}
