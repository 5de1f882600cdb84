//! Outages of webhook, sink and apiserver.

use job_handler_e2e::Component;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;

use super::fixtures::{
    PATIENCE, annotation, exclusive_scenario, exclusive_scenario_with_replicas, job, refusal,
};

#[test]
fn only_limited_jobs_are_refused_while_the_webhook_is_down() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("outage").await.unwrap();
        let free = fixture.cluster.namespace("free").await.unwrap();
        fixture.apply_policy(&ns, "builds", json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": 5}]})).await;
        // Creates the namespace's ledger: a new replica refuses Jobs of an unknown ledger for a minute.
        fixture.create(&ns, &job("before", &[("app", "build")], &[])).await.unwrap();
        fixture.pair.webhook(0).kill().unwrap();
        // Stamping fails open, the limit does not.
        fixture.create(&free, &job("free", &[], &[])).await.unwrap();
        fixture.create(&ns, &job("unlimited", &[("app", "other")], &[])).await.unwrap();
        let (code, message) = refusal(fixture.create(&ns, &job("limited", &[("app", "build")], &[])).await);
        assert_eq!(code, 500, "{message}");
        assert!(message.contains("limit.job-handler.io"), "{message}");
        fixture.pair.webhook(0).restart().unwrap();
        fixture
            .wait("the webhook to be back", || async {
                fixture.create(&ns, &job("limited", &[("app", "build")], &[])).await
            })
            .await;
    });
}

#[test]
fn a_sink_harvests_jobs_that_finished_while_it_was_down() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("sink-down").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
        fixture.pair.sink().kill().unwrap();
        fixture
            .create(&ns, &job("meanwhile", &[], &[("run", "200ms"), ("log", "still here\n")]))
            .await
            .unwrap();
        fixture
            .wait("the Job to finish", || async {
                let job = fixture.jobs(&ns).get("meanwhile").await.unwrap();
                let completed = job.status.as_ref().and_then(|s| s.completion_time.as_ref()).is_some();
                if completed { Ok(()) } else { Err(format!("{:?}", job.status)) }
            })
            .await;
        assert!(fixture.config_maps(&ns).get_opt("meanwhile-results").await.unwrap().is_none());
        fixture.pair.sink().restart().unwrap();
        let result = fixture.wait_result(&ns, "meanwhile").await;
        assert!(result.data.unwrap()["logs"].contains("still here"));
    });
}

#[test]
fn the_pair_continues_after_a_restart_of_the_apiserver() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("restart").await.unwrap();
        fixture
            .apply_policy(
                &ns,
                "results",
                json!({"stamp": {"activeDeadlineSeconds": {"default": 99}}, "results": {}}),
            )
            .await;
        fixture.cluster.component(Component::Apiserver).unwrap().restart().await.unwrap();
        let made = fixture
            .wait("a stamped Job", || async {
                let made =
                    fixture.create(&ns, &job("after", &[], &[("run", "200ms"), ("log", "after\n")])).await;
                made.map_err(|e| e.to_string())
            })
            .await;
        assert!(annotation(&made, "job-handler/stamped").contains("activeDeadlineSeconds"));
        fixture.wait_result(&ns, "after").await;
        // The Event is published after the result is stored.
        fixture
            .wait("its Event", || async {
                match fixture.events(&ns, "JobProcessing", "after").await.len() {
                    1 => Ok(()),
                    n => Err(format!("{n} Events")),
                }
            })
            .await;
    });
}

#[test]
fn another_sink_takes_over_and_replicas_share_one_ca() {
    exclusive_scenario_with_replicas(2, async |fixture| {
        let ns = fixture.cluster.namespace("leader").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
        let leases: Api<Lease> = Api::namespaced(fixture.client(), "job-handler-system");
        let leader = || async {
            let lease = leases.get("job-handler-sink").await.map_err(|e| e.to_string())?;
            lease.spec.and_then(|s| s.holder_identity).filter(|h| !h.is_empty()).ok_or("no holder".to_owned())
        };
        let first = fixture.wait("a leader", leader).await;
        let index = fixture.pair.sinks().iter().position(|s| first.contains(&s.name())).expect(&first);
        fixture.pair.sinks()[index].kill().unwrap();
        fixture
            .create(&ns, &job("later", &[], &[("run", "200ms"), ("log", "harvested by the other\n")]))
            .await
            .unwrap();
        let result = fixture.wait_result(&ns, "later").await;
        assert!(result.data.unwrap()["logs"].contains("harvested by the other"));
        assert_ne!(fixture.wait("a leader", leader).await, first);
        // The apiserver trusts every webhook replica: the first one is killed, the second one serves.
        fixture.pair.webhook(0).kill().unwrap();
        fixture
            .apply_policy(&ns, "deadline", json!({"stamp": {"activeDeadlineSeconds": {"default": 55}}}))
            .await;
        fixture
            .wait("a Job stamped by the second webhook", || async {
                let created =
                    fixture.create(&ns, &job("stamped", &[], &[])).await.map_err(|e| e.to_string())?;
                fixture.jobs(&ns).delete("stamped", &Default::default()).await.map_err(|e| e.to_string())?;
                let deadline = created.spec.and_then(|s| s.active_deadline_seconds);
                if deadline == Some(55) { Ok(()) } else { Err(format!("{deadline:?}")) }
            })
            .await;
    });
}

#[test]
fn missing_rights_are_reported_and_used_without_a_restart_once_granted() {
    exclusive_scenario(async |fixture| {
        for (program, member) in
            [("job-handler-webhook", fixture.pair.webhook(0)), ("job-handler-sink", fixture.pair.sink())]
        {
            let saved =
                fixture.cluster.kubectl(&["get", "clusterrolebinding", program, "-o", "json"]).await.unwrap();
            fixture.cluster.kubectl(&["delete", "clusterrolebinding", program]).await.unwrap();
            member.restart().unwrap();
            fixture.wait_not_ready(member, "").await;
            fixture
                .wait(&format!("{program} to log the missing right"), || async {
                    let log = member.process().log_since_start();
                    let logged =
                        log.contains("no right to") || log.contains("may not") || log.contains("forbidden");
                    if logged { Ok(()) } else { Err(log) }
                })
                .await;
            let mut binding: serde_json::Value = serde_json::from_str(&saved).unwrap();
            binding["metadata"] = json!({"name": binding["metadata"]["name"]});
            fixture.cluster.kubectl_with_input(&["create", "-f", "-"], &binding.to_string()).await.unwrap();
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}

#[test]
fn missing_crds_are_reported_until_they_are_installed() {
    exclusive_scenario(async |fixture| {
        fixture.cluster.kubectl(&["delete", "crd", "jobpolicies.job-handler.io"]).await.unwrap();
        for member in [fixture.pair.webhook(0), fixture.pair.sink()] {
            member.restart().unwrap();
            fixture.wait_not_ready(member, "olic").await;
        }
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds");
        fixture.cluster.kubectl(&["apply", "-k", crds]).await.unwrap();
        for member in [fixture.pair.webhook(0), fixture.pair.sink()] {
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}

#[test]
fn started_without_an_apiserver_the_pair_waits_for_it() {
    exclusive_scenario(async |fixture| {
        fixture.cluster.component(Component::Apiserver).unwrap().kill().unwrap();
        for member in [fixture.pair.webhook(0), fixture.pair.sink()] {
            member.restart().unwrap();
            fixture.wait_not_ready(member, "").await;
        }
        fixture.cluster.component(Component::Apiserver).unwrap().restart().await.unwrap();
        for member in [fixture.pair.webhook(0), fixture.pair.sink()] {
            member.wait_ready(PATIENCE * 2).await.unwrap();
        }
    });
}
