//! What is captured of a log, and what happens when its stream ends, breaks or stays open.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_log_of_an_ended_container_is_read_once() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("one\ntwo\n")]);
    test.start();
    test.apiserver.put("pods", pod(ended()));
    assert_eq!(test.capture().await, ("one\ntwo\n".to_owned(), None));
    // Neither another event nor a resync reads it again.
    test.apiserver.change("pods", "ci", "x", delete_gracefully);
    sleep(2 * RESYNC).await;
    assert_eq!(*test.log_calls.lock(), ["container=main"]);
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_running_container_is_followed_once_its_pod_is_being_deleted() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("bye\n")]);
    test.start();
    test.apiserver.put("pods", pod(running()));
    sleep(2 * RESYNC).await;
    assert!(test.tracks("x"));
    assert_eq!(test.calls(), 0);
    test.apiserver.change("pods", "ci", "x", delete_gracefully);
    assert_eq!(test.capture().await, ("bye\n".to_owned(), None));
    assert!(test.log_calls.lock()[0].contains("follow=true"), "{:?}", test.log_calls);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_open_after_its_pod_was_deleted_is_stopped_and_its_text_is_kept() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Open("first\n")]);
    test.start();
    let mut deleting = pod(running());
    delete_gracefully(&mut deleting);
    test.apiserver.put("pods", deleting);
    test.until(|test| test.calls() == 1).await;
    let begun = Instant::now();
    test.apiserver.remove("pods", "ci", "x");
    let (text, lost) = test.capture().await;
    assert_eq!(
        (text.as_str(), lost.as_deref()),
        ("first\n", Some("reading was stopped before the log's end"))
    );
    assert!(begun.elapsed() >= DELETED_POD_STREAM, "{:?}", begun.elapsed());
    assert!(test.follower.pod_tracker.captured_pods("ci", "u").0["x"].facts.gone);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_read_again_from_its_start() {
    const LOGS: &[ScriptedLog] = &[ScriptedLog::Broken("one\n"), ScriptedLog::Complete("one\ntwo\n")];
    let test = FollowerTest::new(json!({"results": {}}), LOGS);
    test.start();
    test.apiserver.put("pods", pod(ended()));
    assert_eq!(test.capture().await, ("one\ntwo\n".to_owned(), None));
    assert_eq!(test.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn of_a_stream_that_breaks_each_time_the_longest_text_is_kept() {
    const LOGS: &[ScriptedLog] =
        &[ScriptedLog::Broken("one\n"), ScriptedLog::Broken("one\ntwo\n"), ScriptedLog::Broken("o")];
    let test = FollowerTest::new(json!({"results": {}}), LOGS);
    test.start();
    test.apiserver.put("pods", pod(ended()));
    let (text, lost) = test.capture().await;
    assert_eq!((text.as_str(), test.calls()), ("one\ntwo\n", 3));
    assert!(lost.unwrap().starts_with("the log stream broke: "));
}

#[tokio::test(start_paused = true)]
async fn a_refused_log_is_lost_with_the_apiservers_message() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Refused(400)]);
    test.start();
    test.apiserver.put("pods", pod(ended()));
    assert_eq!(test.capture().await, (String::new(), Some("refused".to_owned())));
    assert_eq!(test.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_previous_run_is_read_and_the_current_one_followed() {
    let test = FollowerTest::new(json!({"results": {}}), &[ScriptedLog::Complete("text\n")]);
    test.start();
    let mut restarted = pod(running());
    restarted["status"]["containerStatuses"][0]["lastState"] =
        json!({"terminated": {"exitCode": 1, "containerID": RUN_BEFORE}});
    test.apiserver.put("pods", restarted);
    test.until(|test| [RUN_BEFORE, RUN].iter().all(|run| test.captured(run).is_some())).await;
    let mut calls = test.log_calls.lock().clone();
    calls.sort_by_key(|query| query.contains("follow"));
    assert_eq!(calls.len(), 2);
    assert!(calls[0].contains("previous=true"), "{calls:?}");
    assert!(calls[1].contains("follow=true") && !calls[1].contains("previous"), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_log_over_the_budget_of_its_job_is_marked_as_truncated() {
    let logs = &[ScriptedLog::Complete("0123456789")];
    for (budget, truncated) in [(4, true), (10, false)] {
        let test = FollowerTest::new(json!({"results": {"logs": {"maxBytesPerJob": budget}}}), logs);
        test.start();
        test.apiserver.put("pods", pod(ended()));
        test.capture().await;
        assert_eq!(test.captured(RUN).unwrap().truncated, truncated, "{budget}");
    }
}
