//! Parts of the pair, or of the cluster, are away.

use serde_json::json;

use super::world::{annotation, job, lonely_scenario, refusal};

#[test]
fn limited_jobs_wait_for_the_webhook_and_nobody_else_does() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("outage").await.unwrap();
        let free = world.cluster.namespace("free").await.unwrap();
        world.policy(&ns, "builds", json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": 5}]})).await;
        world.pair.webhook(0).kill().unwrap();
        // Stamping fails open, the limit does not.
        world.create(&free, &job("free", &[], &[])).await.unwrap();
        world.create(&ns, &job("unlimited", &[("app", "other")], &[])).await.unwrap();
        let (code, message) = refusal(world.create(&ns, &job("limited", &[("app", "build")], &[])).await);
        assert_eq!(code, 500, "{message}");
        assert!(message.contains("limit.job-handler.io"), "{message}");
        world.pair.webhook(0).restart().unwrap();
        world
            .wait("the webhook to be back", || async {
                world.create(&ns, &job("limited", &[("app", "build")], &[])).await
            })
            .await;
    });
}

#[test]
fn a_sink_that_was_away_harvests_what_finished_meanwhile() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("away").await.unwrap();
        world.policy(&ns, "results", json!({"results": {}})).await;
        world.pair.sink().kill().unwrap();
        world
            .create(&ns, &job("meanwhile", &[], &[("run", "200ms"), ("log", "still here\n")]))
            .await
            .unwrap();
        world
            .wait("the Job to finish", || async {
                let job = world.jobs(&ns).get("meanwhile").await.unwrap();
                let done = job.status.as_ref().and_then(|s| s.completion_time.as_ref()).is_some();
                if done { Ok(()) } else { Err(format!("{:?}", job.status)) }
            })
            .await;
        assert!(world.config_maps(&ns).get_opt("meanwhile-results").await.unwrap().is_none());
        world.pair.sink().restart().unwrap();
        let result = world.result(&ns, "meanwhile").await;
        assert!(result.data.unwrap()["logs"].contains("still here"));
    });
}

#[test]
fn the_apiserver_comes_back_and_the_pair_goes_on() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("restart").await.unwrap();
        world
            .policy(
                &ns,
                "results",
                json!({"stamp": {"activeDeadlineSeconds": {"default": 99}}, "results": {}}),
            )
            .await;
        world.cluster.component(job_handler_e2e::Component::Apiserver).unwrap().restart().await.unwrap();
        let made = world
            .wait("a stamped Job", || async {
                let made =
                    world.create(&ns, &job("after", &[], &[("run", "200ms"), ("log", "after\n")])).await;
                made.map_err(|e| e.to_string())
            })
            .await;
        assert!(annotation(&made, "job-handler/stamped").contains("activeDeadlineSeconds"));
        world.result(&ns, "after").await;
        assert_eq!(world.events(&ns, "JobProcessing", "after").await.len(), 1);
    });
}
