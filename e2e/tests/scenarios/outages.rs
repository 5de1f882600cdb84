//! Parts of the pair, or of the cluster, are away.

use job_handler_e2e::Component;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;

use super::fixtures::{PATIENCE, annotation, job, lonely_scenario, lonely_scenario_of, refusal};

#[test]
fn limited_jobs_wait_for_the_webhook_and_nobody_else_does() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("outage").await.unwrap();
        let free = world.cluster.namespace("free").await.unwrap();
        world.policy(&ns, "builds", json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": 5}]})).await;
        // The namespace's ledger is there: one that a fresh replica has never heard of is refused for a minute.
        world.create(&ns, &job("before", &[("app", "build")], &[])).await.unwrap();
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
        world.cluster.component(Component::Apiserver).unwrap().restart().await.unwrap();
        let made = world
            .wait("a stamped Job", || async {
                let made =
                    world.create(&ns, &job("after", &[], &[("run", "200ms"), ("log", "after\n")])).await;
                made.map_err(|e| e.to_string())
            })
            .await;
        assert!(annotation(&made, "job-handler/stamped").contains("activeDeadlineSeconds"));
        world.result(&ns, "after").await;
        // It is told after it is stored.
        world
            .wait("its Event", || async {
                match world.events(&ns, "JobProcessing", "after").await.len() {
                    1 => Ok(()),
                    n => Err(format!("{n} Events")),
                }
            })
            .await;
    });
}

#[test]
fn another_sink_takes_over_and_replicas_share_one_ca() {
    lonely_scenario_of(2, async |world| {
        let ns = world.cluster.namespace("leader").await.unwrap();
        world.policy(&ns, "results", json!({"results": {}})).await;
        let leases: Api<Lease> = Api::namespaced(world.client(), "job-handler-system");
        let leader = || async {
            let lease = leases.get("job-handler-sink").await.map_err(|e| e.to_string())?;
            lease.spec.and_then(|s| s.holder_identity).filter(|h| !h.is_empty()).ok_or("nobody".to_owned())
        };
        let first = world.wait("a leader", leader).await;
        let index = world.pair.sinks().iter().position(|s| first.contains(&s.name())).expect(&first);
        world.pair.sinks()[index].kill().unwrap();
        world
            .create(&ns, &job("later", &[], &[("run", "200ms"), ("log", "harvested by the other\n")]))
            .await
            .unwrap();
        let result = world.result(&ns, "later").await;
        assert!(result.data.unwrap()["logs"].contains("harvested by the other"));
        assert_ne!(world.wait("a leader", leader).await, first);
        // Whichever webhook a review reaches, the apiserver trusts it: the first one goes, the second one serves.
        world.pair.webhook(0).kill().unwrap();
        world.policy(&ns, "deadline", json!({"stamp": {"activeDeadlineSeconds": {"default": 55}}})).await;
        world
            .wait("a Job stamped by the second webhook", || async {
                let made = world.create(&ns, &job("stamped", &[], &[])).await.map_err(|e| e.to_string())?;
                world.jobs(&ns).delete("stamped", &Default::default()).await.map_err(|e| e.to_string())?;
                let deadline = made.spec.and_then(|s| s.active_deadline_seconds);
                if deadline == Some(55) { Ok(()) } else { Err(format!("{deadline:?}")) }
            })
            .await;
    });
}

#[test]
fn missing_rights_are_named_and_mended_without_a_restart() {
    lonely_scenario(async |world| {
        for (program, member) in
            [("job-handler-webhook", world.pair.webhook(0)), ("job-handler-sink", world.pair.sink())]
        {
            let binding = format!("{program}-local");
            let saved =
                world.cluster.kubectl(&["get", "clusterrolebinding", &binding, "-o", "json"]).await.unwrap();
            world.cluster.kubectl(&["delete", "clusterrolebinding", &binding]).await.unwrap();
            member.restart().unwrap();
            world.not_ready(member, "").await;
            world
                .wait(&format!("{program} to say what it lacks"), || async {
                    let log = member.process().log_of_this_run();
                    let told =
                        log.contains("no right to") || log.contains("may not") || log.contains("forbidden");
                    if told { Ok(()) } else { Err(log) }
                })
                .await;
            let mut binding: serde_json::Value = serde_json::from_str(&saved).unwrap();
            binding["metadata"] = json!({"name": binding["metadata"]["name"]});
            world.cluster.kubectl_with_input(&["create", "-f", "-"], &binding.to_string()).await.unwrap();
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}

#[test]
fn missing_crds_are_named_and_waited_for() {
    lonely_scenario(async |world| {
        world.cluster.kubectl(&["delete", "crd", "jobpolicies.job-handler.io"]).await.unwrap();
        for member in [world.pair.webhook(0), world.pair.sink()] {
            member.restart().unwrap();
            world.not_ready(member, "olic").await;
        }
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds");
        world.cluster.kubectl(&["apply", "-k", crds]).await.unwrap();
        for member in [world.pair.webhook(0), world.pair.sink()] {
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}

#[test]
fn started_without_an_apiserver_the_pair_waits_for_it() {
    lonely_scenario(async |world| {
        world.cluster.component(Component::Apiserver).unwrap().kill().unwrap();
        for member in [world.pair.webhook(0), world.pair.sink()] {
            member.restart().unwrap();
            world.not_ready(member, "").await;
        }
        world.cluster.component(Component::Apiserver).unwrap().restart().await.unwrap();
        for member in [world.pair.webhook(0), world.pair.sink()] {
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}
