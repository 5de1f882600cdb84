use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::Method;
use job_handler_shared::{
    policy::parsed::Policy,
    testing::{
        apiserver::Apiserver,
        policies::{job_policy, namespaced},
    },
};
use serde_json::{Value, json};

use super::*;
use crate::test_support::policy_entry;

const RESOURCE: &str = "validatingwebhookconfigurations";

fn set_bundle(apiserver: &Apiserver, bundle: &str) {
    set_client(apiserver, &secret(1), bundle);
}

fn secret(number: u64) -> String {
    format!("{number}-1-{}", "0".repeat(64))
}

fn set_client(apiserver: &Apiserver, secret: &str, bundle: &str) {
    let path = format!("/{secret}/mutate");
    apiserver.put(
        "mutatingwebhookconfigurations",
        json!({"metadata": {"name": "job-handler"}, "webhooks": [{
            "name": "stamp.job-handler.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"name": "job-handler", "namespace": "ours", "path": path},
                "caBundle": bundle}}]}),
    );
}

fn writer(apiserver: &Apiserver) -> (EntryWriter, watch::Receiver<EntryState>) {
    let (sender, state) = watch::channel(EntryState::default());
    let recorder = Recorder::new(apiserver.client(), "sink-0");
    (EntryWriter::new(apiserver.client(), "ours".into(), recorder, sender), state)
}

fn limited(namespace: &str, name: &str, generation: i64) -> Arc<Policy> {
    let metadata = json!({"name": name, "namespace": namespace, "uid": name, "generation": generation});
    let selector = json!({"matchLabels": {"generation": generation.to_string()}}); // so that the entries differ, too
    job_policy(metadata, json!({"jobSelector": selector, "limits": [{"name": "l", "maxActiveJobs": 1}]}))
}

/// Names of the policies with entries, by configuration.
fn stored(apiserver: &Apiserver) -> BTreeMap<String, BTreeSet<String>> {
    let names = |configuration: &Value| {
        let webhooks = configuration["webhooks"].as_array().unwrap().iter();
        webhooks.map(|entry| entry["name"].as_str().unwrap().split('.').next().unwrap().to_owned()).collect()
    };
    let named = |configuration: Value| {
        (configuration["metadata"]["name"].as_str().unwrap().to_owned(), names(&configuration))
    };
    apiserver.all(RESOURCE).into_iter().map(named).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_rejected_policy_is_left_out_and_the_others_are_written() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let strict = Arc::new(AtomicBool::new(true));
    let switch = strict.clone();
    apiserver.validate(RESOURCE, move |configuration| {
        let is_bad = configuration["webhooks"].to_string().contains("\"bad.ci.");
        (is_bad && switch.load(Ordering::SeqCst)).then(|| "prefix part must be short".to_owned())
    });
    let (mut writer, state) = writer(&apiserver);
    let all =
        |bad: i64| PolicySet::new([limited("ci", "a", 1), limited("ci", "bad", bad), limited("qa", "z", 1)]);
    assert_eq!(writer.round(&all(1)).await, RESYNC);
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "z"]));
    let now = state.borrow().clone();
    assert_eq!(now.written, BTreeMap::from([("a".to_owned(), 1), ("z".to_owned(), 1)]));
    assert_eq!(now.failures.keys().collect::<Vec<_>>(), ["bad"]);
    assert!(now.failures["bad"].message.contains("prefix part must be short"), "{now:?}");
    // The caBundle of the others is renewed.
    set_bundle(&apiserver, "Yg==");
    writer.round(&all(1)).await;
    let entries = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap();
    assert_eq!(entries["webhooks"][0]["clientConfig"]["caBundle"], "Yg==");
    assert_eq!(state.borrow().written.len(), 2);
    // It is corrected, and then broken again: it stands nowhere.
    strict.store(false, Ordering::SeqCst);
    writer.round(&all(2)).await;
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "bad", "z"]));
    strict.store(true, Ordering::SeqCst);
    writer.round(&all(3)).await;
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "z"]));
    assert!(state.borrow().failures.contains_key("bad") && state.borrow().written.len() == 2);
    // Another path and CA reach all that stands: nothing of the rejected one does.
    set_client(&apiserver, &secret(2), "Yw==");
    writer.round(&all(3)).await;
    let text = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap().to_string();
    assert!(text.contains(&secret(2)) && !text.contains(&secret(1)) && !text.contains("Yg=="), "{text}");
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "z"]));
}

#[tokio::test]
async fn more_policies_than_one_configuration_holds_are_spread_and_found_again() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let all = PolicySet::new((0..250).map(|n| limited(&format!("team-{}", n % 9), &format!("p{n}"), 1)));
    let (mut first, state) = writer(&apiserver);
    while state.borrow().written.len() < 250 {
        first.round(&all).await;
    }
    let before = stored(&apiserver);
    assert!(before.len() > 2 && before.values().all(|names| names.len() <= 100), "{before:?}");
    assert_eq!(before.values().map(BTreeSet::len).sum::<usize>(), 250);
    // The next leader writes nothing, and tries nothing.
    let calls = apiserver.calls().len();
    let (mut second, state) = writer(&apiserver);
    second.round(&all).await;
    assert_eq!((state.borrow().written.len(), apiserver.calls().len()), (250, calls));
    // A policy that changes leaves the other configurations alone.
    let changed = all.iter().filter(|policy| policy.reference.name != "p249").cloned();
    second.round(&PolicySet::new(changed)).await;
    assert_eq!(apiserver.calls().len(), calls + 1);
    assert_eq!(stored(&apiserver).values().map(BTreeSet::len).sum::<usize>(), 249);
}

#[tokio::test]
async fn entries_that_have_to_move_are_never_missing() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let all = PolicySet::new((0..90).map(|n| limited("ci", &format!("p{n}"), 1)));
    let (mut writer, state) = writer(&apiserver);
    while state.borrow().written.len() < 90 {
        writer.round(&all).await;
    }
    assert_eq!(stored(&apiserver).len(), 1);
    // With this caBundle they do not fit any longer.
    set_bundle(&apiserver, &"YWFh".repeat(1000));
    let from = apiserver.version();
    writer.round(&all).await;
    assert_eq!(state.borrow().written.len(), 90);
    let now = stored(&apiserver);
    assert!(now.len() > 1 && now.values().map(BTreeSet::len).sum::<usize>() == 90, "{now:?}");
    let mut standing: BTreeMap<String, BTreeSet<String>> =
        [("job-handler-limits".to_owned(), now.values().flatten().cloned().collect())].into();
    for (_, event) in apiserver.events(RESOURCE, from, u64::MAX - 1) {
        let object = &event["object"];
        let entries = object["webhooks"].as_array().unwrap().iter();
        let names =
            entries.map(|e| e["name"].as_str().unwrap().split('.').next().unwrap().to_owned()).collect();
        standing.insert(object["metadata"]["name"].as_str().unwrap().to_owned(), names);
        assert_eq!(standing.values().flatten().collect::<BTreeSet<_>>().len(), 90, "after {object}");
    }
}

#[tokio::test]
async fn tampered_entries_are_reported_for_their_policies_only() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let all = PolicySet::new([limited("ci", "a", 1), limited("qa", "b", 1)]);
    let (mut writer, state) = writer(&apiserver);
    writer.round(&all).await;
    assert_eq!(state.borrow().written.len(), 2);
    apiserver.change(RESOURCE, "", "job-handler-limits", |stored| {
        stored["webhooks"][0]["failurePolicy"] = "Ignore".into();
    });
    writer.configurations.changed().await;
    writer.round(&all).await;
    let now = state.borrow().clone();
    assert_eq!(now.written.keys().collect::<Vec<_>>(), ["b"]);
    assert!(now.failures["a"].message.contains("was edited by someone else"), "{now:?}");
    writer.events.next().await;
    assert_eq!(apiserver.all("events").len(), 1);
    let entries = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap();
    assert_eq!(entries["webhooks"][0]["failurePolicy"], "Fail");

    apiserver.remove(RESOURCE, "", "job-handler-limits");
    writer.configurations.changed().await;
    writer.round(&all).await;
    let now = state.borrow().clone();
    assert!(now.written.is_empty(), "{now:?}");
    assert!(now.failures["b"].message.contains("was deleted by someone else"), "{now:?}");
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "b"]));
}

#[tokio::test]
async fn a_failed_call_removes_nothing_and_concerns_only_its_configuration() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let (mut writer, state) = writer(&apiserver);
    let policies = |generation| PolicySet::new([limited("ci", "a", generation), limited("qa", "b", 1)]);
    writer.round(&policies(1)).await;
    // The check of the new generation fails: the entry of the old one stays.
    apiserver.refuse_once(Method::POST, RESOURCE, 503);
    writer.round(&policies(2)).await;
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "b"]));
    let now = state.borrow().clone();
    assert_eq!((now.failures["a"].reason, now.written.get("b")), ("EntryMissing", Some(&1)));
    // A write that fails is reported for the policies of that configuration.
    set_bundle(&apiserver, "Yg==");
    apiserver.refuse_once(Method::PUT, RESOURCE, 500);
    apiserver.refuse_once(Method::PUT, RESOURCE, 500);
    assert!(writer.round(&policies(2)).await < RESYNC, "sooner than without a failure");
    assert!(state.borrow().failures["b"].message.contains("cannot be written"), "{:?}", state.borrow());
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "b"]));
}

/// One tenant who changes his policies again and again could keep a leaked secret, or an old CA, in use.
#[tokio::test]
async fn entries_of_an_undecided_policy_get_the_new_client_and_nothing_else() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let (mut writer, _state) = writer(&apiserver);
    let policies = |generation: i64| {
        let metadata = json!({"name": "w", "namespace": "ci", "uid": "w", "generation": generation});
        let selector = json!({"matchLabels": {"generation": generation.to_string()}});
        let limits = json!([{"name": "l", "maxActiveJobs": 1}]);
        let warned = json!({"mode": "Warn", "jobSelector": selector, "limits": limits});
        PolicySet::new([limited("ci", "a", generation), job_policy(metadata, warned)])
    };
    writer.round(&policies(1)).await;
    let entries = || {
        let stored = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap();
        stored["webhooks"].as_array().unwrap().clone()
    };
    let mut expected = entries();
    for _ in 0..2 {
        apiserver.refuse_once(Method::POST, RESOURCE, 503);
    }
    writer.round(&policies(2)).await;
    assert_eq!(entries(), expected);
    set_client(&apiserver, &secret(2), "Yg==");
    writer.round(&policies(2)).await;
    for entry in &mut expected {
        let endpoint = if entry["failurePolicy"] == "Fail" { "validate" } else { "warn" };
        entry["clientConfig"]["caBundle"] = "Yg==".into();
        entry["clientConfig"]["service"]["path"] = format!("/{}/{endpoint}", secret(2)).into();
    }
    assert_eq!(entries(), expected);
    let written = apiserver.replaced(RESOURCE);
    writer.round(&policies(2)).await;
    assert_eq!(apiserver.replaced(RESOURCE), written, "there is nothing more to write");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_new_policies_are_not_written_a_few_at_a_time() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let (mut writer, _state) = writer(&apiserver);
    writer.checks = EntryChecks::new(apiserver.slow_client(|_, _| Duration::from_millis(100)));
    let policies = (0..300).map(|n| limited(&format!("team-{}", n / 10), &format!("p{n}"), 1));
    let policies = PolicySet::new(policies);
    let mut rounds = 0;
    while stored(&apiserver).values().map(BTreeSet::len).sum::<usize>() < 300 {
        rounds += 1;
        assert!(rounds < 4, "{:?}", stored(&apiserver).values().map(BTreeSet::len).collect::<Vec<_>>());
        writer.round(&policies).await;
    }
    assert!(replaces(&apiserver) < 10, "{}", replaces(&apiserver));
}

/// The number of writes of configurations that the apiserver was asked for.
fn replaces(apiserver: &Apiserver) -> usize {
    apiserver.calls().iter().filter(|call| call.starts_with("PUT")).count()
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_no_longer_accepted_is_found_and_left_out() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let strict = Arc::new(AtomicBool::new(false));
    let switch = strict.clone();
    apiserver.validate(RESOURCE, move |configuration| {
        let is_bad = configuration["webhooks"].to_string().contains("\"bad.ci.");
        (is_bad && switch.load(Ordering::SeqCst)).then(|| "too expensive: app=of-bad".to_owned())
    });
    let (mut writer, state) = writer(&apiserver);
    let all = PolicySet::new([limited("ci", "a", 1), limited("ci", "bad", 1), limited("qa", "z", 1)]);
    writer.round(&all).await;
    assert_eq!(state.borrow().written.len(), 3);
    // Another version of the apiserver rejects what one accepted.
    strict.store(true, Ordering::SeqCst);
    set_bundle(&apiserver, "Yg==");
    writer.round(&all).await;
    let failure = state.borrow().failures["z"].clone();
    assert!(
        failure.message.contains("the sink's log says why") && !failure.message.contains("of-bad"),
        "{failure:?}"
    );
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(1)).await;
        writer.round(&all).await;
    }
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "z"]));
    let entries = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap();
    assert_eq!(entries["webhooks"][0]["clientConfig"]["caBundle"], "Yg==");
    let now = state.borrow().clone();
    assert_eq!((now.failures["bad"].reason, now.written.len()), ("EntryRejected", 2), "{now:?}");
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_rejected_whatever_is_in_it_is_tried_less_and_less() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let (mut writer, state) = writer(&apiserver);
    let all = PolicySet::new([limited("ci", "a", 1), limited("qa", "z", 1)]);
    writer.round(&all).await;
    let strict = Arc::new(AtomicBool::new(true));
    let switch = strict.clone();
    apiserver.validate(RESOURCE, move |configuration| {
        let is_whole = configuration["webhooks"].as_array().unwrap().len() > 2;
        (is_whole && switch.load(Ordering::SeqCst)).then(|| "denied".to_owned())
    });
    set_bundle(&apiserver, "Yg==");
    let before = replaces(&apiserver);
    for _ in 0..600 {
        writer.round(&all).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let tried = replaces(&apiserver) - before;
    assert!((5..40).contains(&tried), "{tried} times in 10 minutes");
    assert_eq!(state.borrow().failures["a"].reason, "EntryMissing");
    strict.store(false, Ordering::SeqCst);
    for _ in 0..130 {
        writer.round(&all).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(state.borrow().written.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_keeps_changing_does_not_cause_a_write_each_time() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let (mut writer, state) = writer(&apiserver);
    let all = |generation| PolicySet::new([limited("ci", "a", generation), limited("qa", "z", 1)]);
    for generation in 1..=300 {
        writer.round(&all(generation)).await;
        tokio::time::advance(EVERY).await;
    }
    let writes = replaces(&apiserver);
    assert!((10..60).contains(&writes), "{writes} writes in a minute");
    assert_eq!(state.borrow().written.get("z"), Some(&1), "its entries stand");
    // Restoring what someone else changed does not wait.
    apiserver.remove(RESOURCE, "", "job-handler-limits");
    writer.configurations.changed().await;
    writer.round(&all(300)).await;
    assert_eq!(stored(&apiserver)["job-handler-limits"], names(&["a", "z"]));
    let pause = writer.round(&all(301)).await;
    assert!(pause < RESYNC && state.borrow().failures["a"].message.contains("changes often"), "{state:?}");
    tokio::time::advance(PERIOD).await;
    writer.round(&all(301)).await;
    assert_eq!(state.borrow().written.get("a"), Some(&301));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_configuration_is_restored_without_polling_and_before_the_events() {
    let apiserver = Apiserver::default();
    set_bundle(&apiserver, "YQ==");
    let store = Store::default();
    store
        .put_policy(policy_entry(1, namespaced("a", json!({"limits": [{"name": "l", "maxActiveJobs": 1}]}))));
    let (sender, _state) = watch::channel(EntryState::default());
    let slow = |_: &Method, path: &str| Duration::from_secs(if path.ends_with("/events") { 5 } else { 0 });
    let recorder = Recorder::new(apiserver.slow_client(slow), "sink-0");
    let _running = tokio::spawn(run(apiserver.client(), store, "ours".into(), recorder, sender));
    let exists = || apiserver.get(RESOURCE, "", "job-handler-limits").is_some();
    let until = async |condition: &dyn Fn() -> bool| {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    until(&exists).await;
    // Between two rounds that would be made without a change.
    sleep(10 * RESYNC + RESYNC / 2).await;
    let deleted_at = Instant::now();
    apiserver.remove(RESOURCE, "", "job-handler-limits");
    until(&exists).await;
    assert!(deleted_at.elapsed() < Duration::from_secs(1), "{:?}", deleted_at.elapsed());
    assert!(apiserver.all("events").is_empty(), "no entry waits for one");
    until(&|| apiserver.all("events").len() == 1).await;
}
