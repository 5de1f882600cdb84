//! Ledgers that were edited, corrupted or deleted, forged annotations, and a tenant whose creates always fail: no Job
//! is admitted beyond a limit, Jobs without a limit are admitted, and messages name the cause.

use std::time::Duration;

use http::Method;
use job_handler_e2e::{
    PairOptions,
    net::fault_proxy::{ProxyFault, Rule},
    wait_for,
};
use job_handler_shared::{ledger::crd::JobLedger, policy::spec::ClusterJobPolicy};
use k8s_openapi::api::{batch::v1::Job, core::v1::ResourceQuota};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, exclusive_scenario, exclusive_scenario_with_options, job, refusal, scenario};

/// The expiry of an attempt (a minute), with slack for a busy machine.
const EXPIRY: Duration = Duration::from_secs(150);

fn limit(max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

fn build(name: &str) -> Value {
    job(name, &[("app", "build")], &[("end", "Hang")])
}

fn ledgers(fixture: &Fixture) -> Api<JobLedger> {
    Api::namespaced(fixture.client(), "job-handler-system")
}

/// Jobs through a client that does not retry: by default, a client retries 429 and 503 for minutes.
fn jobs(fixture: &Fixture, namespace: &str) -> Api<Job> {
    let mut config = fixture.cluster.config().clone();
    config.default_retry = false;
    Api::namespaced(Client::try_from(config).unwrap(), namespace)
}

async fn create(fixture: &Fixture, namespace: &str, job: &Value) -> kube::Result<Job> {
    let job = serde_json::from_value(job.clone()).unwrap();
    jobs(fixture, namespace).create(&PostParams::default(), &job).await
}

/// The number of unfinished Jobs under the limit.
async fn count_active(fixture: &Fixture, namespace: &str) -> usize {
    let builds = ListParams::default().labels("app=build");
    let all = jobs(fixture, namespace).list(&builds).await.unwrap().items;
    all.iter().filter(|job| job_handler_e2e::cluster::jobs::finished(job).is_none()).count()
}

async fn create_unlimited(fixture: &Fixture, namespace: &str) {
    let free = serde_json::from_value(json!({
        "metadata": {"generateName": "unlimited-"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}},
    }))
    .unwrap();
    jobs(fixture, namespace).create(&PostParams::default(), &free).await.unwrap();
}

/// Waits until a create fails with status 503 and a message with these texts.
async fn wait_unavailable(fixture: &Fixture, namespace: &str, texts: &[&str]) {
    fixture
        .wait(&format!("a message with {texts:?}"), || async {
            match create(fixture, namespace, &build("probe")).await {
                Err(kube::Error::Api(status)) if texts.iter().all(|text| status.message.contains(text)) => {
                    if status.code == 503 {
                        Ok(())
                    } else {
                        Err(format!("{}: {}", status.code, status.message))
                    }
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

/// Creates a namespace with a limit of two and one active Job, so that its ledger exists.
async fn namespace_with_one_of_two_slots_used(
    fixture: &Fixture,
    name: &str,
) -> job_handler_e2e::TestNamespace {
    let ns = fixture.cluster.namespace(name).await.unwrap();
    fixture.apply_policy(&ns, "builds", limit(2)).await;
    create(fixture, &ns, &build("first")).await.unwrap();
    ns
}

/// Waits until one more Job is admitted, and checks that a third is refused.
async fn fill_second_slot(fixture: &Fixture, namespace: &str) {
    let second = wait_for(EXPIRY, "a slot", || async {
        create(fixture, namespace, &build("second")).await.map_err(|error| error.to_string())
    });
    second.await.unwrap();
    let (code, message) = refusal(create(fixture, namespace, &build("third")).await);
    assert!(code == 403 && message.contains("2 active jobs, max allowed: 2"), "{code}: {message}");
    assert_eq!(count_active(fixture, namespace).await, 2);
}

async fn write(fixture: &Fixture, ledger: &str, spec: Value) {
    let change = Patch::Merge(json!({"spec": spec}));
    ledgers(fixture).patch(ledger, &PatchParams::default(), &change).await.unwrap();
}

#[test]
fn a_corrupt_ledger_is_named_and_can_be_repaired_as_documented() {
    scenario(|fixture| async move {
        let ns = namespace_with_one_of_two_slots_used(fixture, "garbage").await;
        write(fixture, &ns, json!({"pending": "none"})).await;
        wait_unavailable(fixture, &ns, &[ns.name(), "spec.pending", "delete the ledger"]).await;
        create_unlimited(fixture, &ns).await;
        assert_eq!(count_active(fixture, &ns).await, 1);
        ledgers(fixture).delete(&ns, &DeleteParams::default()).await.unwrap();
        wait_unavailable(fixture, &ns, &["missing", "a new one is created in"]).await;
        create_unlimited(fixture, &ns).await;
        fill_second_slot(fixture, &ns).await;
    });
}

#[test]
fn a_ledger_of_a_newer_version_is_reported_and_not_changed() {
    scenario(|fixture| async move {
        let ns = namespace_with_one_of_two_slots_used(fixture, "newer").await;
        write(fixture, &ns, json!({"format": 2, "later": {"a": 1}})).await;
        wait_unavailable(fixture, &ns, &[ns.name(), "format 2", "this version knows 1"]).await;
        create_unlimited(fixture, &ns).await;
        let fields = ledgers(fixture).get(&ns).await.unwrap().spec.fields;
        assert_eq!((&fields["format"], &fields["later"]), (&json!(2), &json!({"a": 1})));
        write(fixture, &ns, json!({"format": 1, "later": null})).await;
        fill_second_slot(fixture, &ns).await;
    });
}

#[test]
fn a_ledger_deleted_by_hand_is_recreated_after_a_minute_and_no_job_too_many_is_admitted() {
    scenario(|fixture| async move {
        let ns = namespace_with_one_of_two_slots_used(fixture, "deleted").await;
        ledgers(fixture).delete(&ns, &DeleteParams::default()).await.unwrap();
        wait_unavailable(fixture, &ns, &["missing", "a new one is created in"]).await;
        fixture
            .wait("condition Ready to report the missing ledger", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready").unwrap();
                let reported = ready.status == "False" && ready.reason == "LedgerMissing";
                if reported { Ok(()) } else { Err(format!("{ready:?}")) }
            })
            .await;
        fill_second_slot(fixture, &ns).await;
        fixture.wait_policy_ready(&ns, "builds", Some(1)).await;
    });
}

#[test]
fn a_ledger_edited_by_hand_counts_too_much_for_a_while_never_too_little() {
    scenario(|fixture| async move {
        let ns = namespace_with_one_of_two_slots_used(fixture, "edited").await;
        // A forged attempt under unknown policies, and a revision far ahead of every watch.
        let forged = json!({"r": {"jobUid": "unknown", "kind": "create", "revision": "?", "scopes": [],
            "since": "2020-01-01T00:00:00Z"}});
        let key = format!("{}/unknown", ns.name());
        write(fixture, &ns, json!({"pending": {key: forged}, "observedThrough": 4_000_000_000_000_u64}))
            .await;
        let (code, message) = refusal(create(fixture, &ns, &build("third")).await);
        assert!(code == 403 && message.contains("1 just admitted"), "{code}: {message}");
        fill_second_slot(fixture, &ns).await;
    });
}

#[test]
fn forged_annotations_gain_no_slot() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("forged").await.unwrap();
        let spec = json!({
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [{"name": "few", "maxActiveJobs": 1}, {"name": "each", "maxActiveJobs": 1, "scope": "Group"}],
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        create(fixture, &ns, &job("first", &[("id", "7")], &[("end", "Hang")])).await.unwrap();
        for (key, value) in [
            ("job-handler/group", "another"),
            ("job-handler/enabled", "false"),
            ("job-handler/created", "true"),
        ] {
            let forged = job("forged", &[("id", "7"), (key, value)], &[]);
            assert_eq!(refusal(create(fixture, &ns, &forged).await).0, 403, "{key}");
        }
        for (key, value) in [
            ("job-handler/status", "completed"),
            ("job-handler/queued-at", "2020-01-01T00:00:00Z"),
            ("job-handler/stamped", "nothing"),
            ("job-handler/results", "forged-results"),
        ] {
            let mut forged = job("forged", &[("id", "8")], &[]);
            forged["metadata"]["annotations"] = json!({key: value});
            assert_eq!(refusal(create(fixture, &ns, &forged).await).0, 403, "{key}");
        }
        // Annotations on an active Job do not free its slot.
        let forged = json!({"metadata": {
            "labels": {"job-handler/group": "another"}, "annotations": {"job-handler/status": "completed"}}});
        fixture.edit_past_admission_policy(&ns, "job/first", &forged).await;
        assert_eq!(refusal(create(fixture, &ns, &job("second", &[("id", "7")], &[])).await).0, 403);
    });
}

#[test]
fn a_tenant_with_failing_creates_is_throttled_and_does_not_use_up_cluster_limits() {
    // On its own cluster: attempts without a Job stay in the cluster's ledger for a minute, and after a change of any
    // policy every cluster-wide limit counts them.
    exclusive_scenario(async |fixture| {
        let tenant = fixture.cluster.namespace("tenant").await.unwrap();
        let other = fixture.cluster.namespace("other").await.unwrap();
        let quotas: Api<ResourceQuota> = Api::namespaced(fixture.client(), &tenant);
        let quota = serde_json::from_value(json!({
            "metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}},
        }))
        .unwrap();
        quotas.create(&PostParams::default(), &quota).await.unwrap();
        let name = format!("over-{}", tenant.name());
        let policies: Api<ClusterJobPolicy> = Api::all(fixture.client());
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [tenant.name(), other.name()]}]},
                "limits": [{"name": "all", "maxActiveJobs": 40, "scope": "Cluster"}],
            },
        });
        let policy: ClusterJobPolicy = serde_json::from_value(policy).unwrap();
        policies.create(&PostParams::default(), &policy).await.unwrap();
        fixture
            .wait("the policy to be Ready", || async {
                let status = policies.get(&name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
                let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
                if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
            })
            .await;
        // Sequential creates with different names, all denied by the quota.
        let mut attempts = 0;
        let message = wait_for(EXPIRY, "the tenant to be throttled (429)", || {
            attempts += 1;
            let one = job(&format!("j{attempts}"), &[], &[]);
            let tenant = tenant.name();
            async move {
                match create(fixture, tenant, &one).await {
                    Err(kube::Error::Api(status)) if status.code == 429 => Ok(status.message.clone()),
                    other => Err(format!("{other:?}")),
                }
            }
        });
        let message = message.await.unwrap();
        assert!(
            message.contains(tenant.name()) && message.contains("were admitted and then not created"),
            "{message}"
        );
        // Other namespaces still have slots.
        for n in 0..5 {
            create(fixture, &other, &job(&format!("other-{n}"), &[], &[("end", "Hang")])).await.unwrap();
        }
        policies.delete(&name, &DeleteParams::default()).await.unwrap();
    });
}

#[test]
fn no_job_too_many_is_admitted_when_the_apiserver_is_slow_throttles_or_loses_answers() {
    let options = PairOptions { webhook_proxy: true, ..PairOptions::default() };
    exclusive_scenario_with_options(options, async |fixture| {
        let proxy = fixture.pair.webhook(0).proxy();
        let delay = Duration::from_secs(5);
        let faults = [
            ProxyFault::Refuse(429),
            ProxyFault::Refuse(500),
            ProxyFault::Disconnect,
            ProxyFault::DisconnectAfter,
            ProxyFault::Refuse(409),
            ProxyFault::DelayCall(delay),
            ProxyFault::DelayAnswer(delay),
        ];
        for (n, fault) in faults.into_iter().enumerate() {
            let ns = namespace_with_one_of_two_slots_used(fixture, &format!("fault-{n}")).await;
            let fault_name = format!("{fault:?}");
            // Faults in writes of this ledger, and in reads of the ledger and its Jobs.
            let writes =
                proxy.add(Rule::new(fault.clone()).method(Method::PUT).name_prefix(ns.name()).times(3));
            let name = ns.name().to_owned();
            let reads = proxy.add(
                Rule::new(fault)
                    .when(move |call| {
                        let ledger = call.path.contains("/jobledgers/") && call.name.as_ref() == Some(&name);
                        let jobs = call.path.ends_with(&format!("/namespaces/{name}/jobs"));
                        call.method == Method::GET && (ledger || jobs) && !call.query.contains("watch")
                    })
                    .skip(1)
                    .times(2),
            );
            let second = wait_for(EXPIRY, "a slot", || async {
                create(fixture, &ns, &build("second")).await.map_err(|error| error.to_string())
            });
            // Jobs without a limit are not delayed.
            let (second, ()) = tokio::join!(second, create_unlimited(fixture, &ns));
            second.unwrap();
            let third = wait_for(EXPIRY, "a refusal by the limit", || async {
                match create(fixture, &ns, &build("third")).await {
                    Err(kube::Error::Api(status)) if status.code == 403 => Ok(status.message.clone()),
                    Err(error) => Err(error.to_string()),
                    Ok(created) => {
                        panic!("{fault_name}: a third Job was admitted: {:?}", created.metadata.name)
                    }
                }
            });
            let message = third.await.unwrap();
            assert!(message.contains("max allowed: 2"), "{fault_name}: {message}");
            assert_eq!(count_active(fixture, &ns).await, 2, "{fault_name}");
            assert!(writes.count() + reads.count() > 0, "{fault_name}: no fault was injected");
            proxy.clear();
        }
        // During a longer outage creates fail with the reason, and succeed afterwards.
        let outages = [
            (Rule::new(ProxyFault::Refuse(429)).path("jobledgers"), ["JobLedger", "429"]),
            (
                Rule::new(ProxyFault::Refuse(500)).path("jobledgers"),
                ["JobLedger", "injected by the test's proxy"],
            ),
            (Rule::new(ProxyFault::DelayCall(delay)).path("jobledgers"), ["JobLedger", "timed out"]),
            (Rule::new(ProxyFault::Disconnect), ["lost its Lease", "cannot reach the apiserver"]),
        ];
        for (n, (rule, texts)) in outages.into_iter().enumerate() {
            let ns = namespace_with_one_of_two_slots_used(fixture, &format!("outage-{n}")).await;
            proxy.add(rule);
            wait_unavailable(fixture, &ns, &[&["job limits cannot be checked now"], &texts[..]].concat())
                .await;
            create_unlimited(fixture, &ns).await;
            assert_eq!(count_active(fixture, &ns).await, 1, "{texts:?}");
            proxy.clear();
            fill_second_slot(fixture, &ns).await;
        }
    });
}
