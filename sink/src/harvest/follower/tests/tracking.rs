//! Which pods are tracked, and when their logs are captured.

use super::*;

#[tokio::test]
async fn only_pods_of_jobs_whose_result_is_requested_are_tracked() {
    let in_namespace = |namespace: &str| {
        let mut pod = pod(ended());
        pod["metadata"]["namespace"] = namespace.into();
        pod
    };
    let of_owner = |kind: &str, uid: &str| {
        let mut pod = pod(ended());
        pod["metadata"]["ownerReferences"][0]["kind"] = kind.into();
        pod["metadata"]["ownerReferences"][0]["uid"] = uid.into();
        pod
    };
    for (spec, pod, is_tracked) in [
        (json!({"results": {}}), pod(ended()), true),
        (json!({"cleanup": {}}), pod(ended()), false),
        (json!({"results": {}}), in_namespace("kube-system"), false),
        (json!({"results": {}}), in_namespace("job-handler"), false),
        (json!({"results": {}}), of_owner("ReplicaSet", "u"), false),
        // The watch of Jobs may be late.
        (json!({"results": {}}), of_owner("Job", "unknown"), true),
        (json!({"results": {}}), of_owner("Job", &"u".repeat(64)), false),
        // A tenant can name the Job of another one.
        (json!({"results": {}}), in_namespace("evil"), false),
    ] {
        let test = FollowerTest::new(spec.clone(), &[ScriptedLog::Refused(400)]);
        let context = format!("{spec} {}", pod["metadata"]);
        assert_eq!(test.follower.track(&typed(pod)), is_tracked, "{context}");
        assert_eq!(test.tracks("x"), is_tracked, "{context}");
    }
}

#[tokio::test]
async fn pods_are_needed_until_the_result_is_stored() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Refused(400)]);
    assert_eq!((test.follower.needs("u"), test.follower.needs("unknown")), (Some(true), None));
    let forged = ResultRef::at(StorageKind::ConfigMap, "ci", "build-results");
    test.store().put_result("u", forged.clone());
    assert_eq!(test.follower.needs("u"), Some(true), "what anybody may have written is not its result");
    test.store().put_result("u", ResultRef { sealed: true, ..forged });
    assert_eq!(test.follower.needs("u"), Some(false));
    test.store().remove_results(|_, _| true);
    test.store().put_job(finished());
    test.store().remove_job("u", None);
    assert_eq!(test.follower.needs("u"), Some(true), "the result of a deleted Job is still to be stored");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_before_its_job_is_captured_once_the_job_is_known() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("text\n")]);
    let mut late = pod(ended());
    late["metadata"]["ownerReferences"][0]["uid"] = "late".into();
    test.start();
    test.apiserver.put("pods", late);
    test.until(|test| test.tracks("x")).await;
    sleep(3 * JOB_OF_POD).await;
    assert_eq!(test.calls(), 0);
    // Only the pod's own key can find it: a Job that has not started is not queued.
    test.store().put_job(JobSnapshot { uid: "late".into(), started: None, active_pods: 0, ..job() });
    test.until(|test| test.calls() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_another_namespace_that_comes_before_the_job_is_dropped() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("text\n")]);
    let mut forged = pod(ended());
    forged["metadata"]["namespace"] = "evil".into();
    forged["metadata"]["ownerReferences"][0]["uid"] = "late".into();
    test.start();
    test.apiserver.put("pods", forged);
    test.until(|test| test.tracks("x")).await;
    assert!(test.follower.pod_tracker.captured_pods("ci", "late").0.is_empty());
    test.store().put_job(JobSnapshot { uid: "late".into(), ..job() });
    test.until(|test| !test.tracks("x")).await;
    assert_eq!(test.calls(), 0, "its log is not read");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_a_new_list_does_not_show_is_marked_as_deleted() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Refused(400)]);
    test.start();
    test.apiserver.put("pods", pod(running()));
    test.until(|test| test.tracks("x")).await;
    test.apiserver.report("pods", false);
    test.apiserver.remove("pods", "ci", "x");
    // The watch expires, so that it begins with a list.
    test.apiserver.forget("pods");
    test.until(|test| test.follower.pod_tracker.view("x").is_some_and(|view| view.facts.gone)).await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_earlier_leadership_are_dropped() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Refused(400)]);
    test.follower.pod_tracker.upsert("u", &typed(pod(running())));
    test.start();
    test.until(|test| !test.tracks("x")).await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_the_watch_did_not_show_are_listed() {
    let mut test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Open("")]);
    test.apiserver.put("pods", pod(ended()));
    let key = FollowerKey::Job("u".into());
    test.apiserver.refuse_all(Some(500));
    assert!(!test.process(key.clone()).await, "a failed list is retried");
    test.apiserver.refuse_all(None);
    assert!(test.process(key.clone()).await);
    assert_eq!((test.tracks("x"), test.captures.len(), test.apiserver.lists("pods")), (true, 1, 1));
    assert!(test.process(key).await);
    assert_eq!(test.apiserver.lists("pods"), 1, "as many pods are tracked as the Job has");
}

#[tokio::test]
async fn pods_of_a_job_are_dropped_once_nothing_is_requested_of_it() {
    let mut test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Open("")]);
    test.follower.pod_tracker.upsert("u", &typed(pod(running())));
    let stop = test.follower.pod_tracker.begin_capture("x", RUN).unwrap();
    assert!(test.process(FollowerKey::Job("u".into())).await);
    assert!(test.tracks("x") && !stop.is_cancelled());
    test.store().remove_policies(|_| true);
    assert!(test.process(FollowerKey::Job("u".into())).await);
    assert!(!test.tracks("x") && stop.is_cancelled());
}

#[tokio::test]
async fn pods_of_a_finished_job_stay_for_the_collector() {
    let mut test = FollowerTest::new(json!({"cleanup": {}}), &[ScriptedLog::Open("")]);
    test.follower.pod_tracker.upsert("u", &typed(pod(running())));
    test.store().put_job(finished());
    assert!(test.process(FollowerKey::Job("u".into())).await);
    assert!(test.tracks("x"));
}

#[tokio::test]
async fn a_capture_begins_only_while_the_job_runs_and_the_pod_exists() {
    let without_logs = json!({"results": {"logs": {"mode": "None"}}});
    for (spec, job, is_gone, captures) in [
        (json!({"results": {}}), job(), false, 1),
        (json!({"results": {}}), finished(), false, 0),
        (json!({"results": {}}), job(), true, 0),
        (without_logs, job(), false, 0),
    ] {
        let mut test = FollowerTest::new(spec.clone(), &[ScriptedLog::Open("")]);
        test.store().put_job(job);
        test.follower.pod_tracker.upsert("u", &typed(pod(ended())));
        if is_gone {
            test.follower.pod_tracker.mark_deleted("x", None);
        }
        assert!(test.process(FollowerKey::Pod("x".into())).await);
        assert_eq!(test.captures.len(), captures, "{spec} {is_gone}");
    }
}

#[tokio::test(start_paused = true)]
async fn logs_are_followed_from_shortly_before_the_deadline_of_their_job() {
    // Seconds from now.
    for (deadline, captures, is_checked_again) in [(1, 1, false), (35, 0, true), (3600, 0, false)] {
        let mut test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Open("")]);
        let started = Some(jiff::Timestamp::now());
        test.store().put_job(JobSnapshot { started, deadline: Some(deadline), ..job() });
        test.follower.pod_tracker.upsert("u", &typed(pod(running())));
        let key = FollowerKey::Job("u".into());
        assert!(test.process(key.clone()).await);
        assert_eq!(test.captures.len(), captures, "{deadline}");
        assert_eq!(test.queue.len(), usize::from(is_checked_again), "{deadline}");
        let soon = timeout(Duration::from_secs(1), test.queue.next()).await;
        assert!(soon.is_err(), "{deadline}: {soon:?}");
        let later = timeout(RESYNC, test.queue.next()).await.ok();
        assert_eq!(later, is_checked_again.then_some(key), "{deadline}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_job_is_noticed_without_an_event_of_its_pods() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("bye\n")]);
    // Without active pods, the resync does not check it.
    let quiet = JobSnapshot { active_pods: 0, ..job() };
    test.store().put_job(quiet.clone());
    test.start();
    test.apiserver.put("pods", pod(running()));
    sleep(RESYNC).await;
    assert_eq!(test.calls(), 0);
    test.store().put_job(JobSnapshot { finishing: true, ..quiet });
    assert_eq!(test.capture().await, ("bye\n".to_owned(), None));
}

#[tokio::test(start_paused = true)]
async fn all_jobs_are_checked_after_changes_were_missed() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Refused(400)]);
    let changes = async {
        // More than are buffered, and none that is queued by itself.
        for _ in 0..10_000 {
            test.store().put_job(JobSnapshot { uid: "other".into(), started: None, active_pods: 0, ..job() });
        }
        timeout(RESYNC, test.queue.next()).await.ok()
    };
    let queued = tokio::select! {
        biased;
        never = test.follower.watch_jobs(&test.queue) => match never {},
        queued = changes => queued,
    };
    assert_eq!(queued, Some(FollowerKey::Job("u".into())));
}
