use serde_json::json;

use super::*;
use crate::harvest::{
    log_buffer::LogExcerpt,
    tuning::{DELETED_PODS_PER_JOB, EARLY_MEMORY},
};

fn pod(uid: &str, phase: &str, minute: u8) -> Pod {
    pod_of("ci", uid, phase, minute)
}

fn pod_of(namespace: &str, uid: &str, phase: &str, minute: u8) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": namespace, "uid": uid,
            "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z")},
        "spec": {"containers": [{"name": "main"}]}, "status": {"phase": phase},
    }))
    .unwrap()
}

fn capture(tracker: &PodTracker, uid: &str, bytes: usize, per_job: usize) -> bool {
    let _token = tracker.begin_capture(uid, "r").unwrap();
    let room = tracker.reserve(uid, "r", bytes, per_job);
    let excerpt = LogExcerpt { head: vec![b'x'; if room { bytes } else { 0 }], ..LogExcerpt::default() };
    tracker.end_capture(uid, "r", Ok(EarlyLog { excerpt, ..EarlyLog::default() }));
    room
}

fn bytes_of(tracker: &PodTracker, job: &str, uid: &str) -> usize {
    tracker.captured_pods("ci", job).0[uid].logs.get("r").map_or(0, |content| content.excerpt.bytes())
}

#[test]
fn why_a_container_never_started_outlives_the_deletion_of_its_pod() {
    let tracker = PodTracker::default();
    let with = |state: serde_json::Value| {
        let mut pod = serde_json::to_value(pod("p", "Pending", 0)).unwrap();
        pod["status"]["containerStatuses"] = json!([{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": state}]);
        serde_json::from_value::<Pod>(pod).unwrap()
    };
    let unknown = with(json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}));
    tracker.upsert("j", &with(json!({"waiting": {"reason": "ErrImagePull"}})));
    let reason = || tracker.view("p").unwrap().facts.containers[0].state.reason.clone();
    tracker.upsert("j", &unknown);
    assert_eq!(reason().as_deref(), Some("ErrImagePull"));
    tracker.mark_deleted("p", Some(&unknown));
    assert_eq!(reason().as_deref(), Some("ErrImagePull"));
}

#[test]
fn within_a_job_the_least_relevant_log_is_dropped_first() {
    let tracker = PodTracker::default();
    for (uid, phase, minute) in [
        ("old", "Failed", 1),
        ("well", "Succeeded", 3),
        ("again", "Failed", 0),
        ("new", "Failed", 4),
        ("last", "Failed", 5),
    ] {
        tracker.upsert("j", &pod(uid, phase, minute));
    }
    for uid in ["old", "well", "again"] {
        assert!(capture(&tracker, uid, 10, 30));
    }
    // Only the log of the pod "again" can be read again.
    for uid in ["old", "well", "new", "last"] {
        tracker.mark_deleted(uid, None);
    }
    assert!(capture(&tracker, "new", 10, 30));
    let sizes = || ["old", "well", "again", "new"].map(|uid| bytes_of(&tracker, "j", uid));
    assert_eq!(sizes(), [10, 10, 0, 10]);
    assert!(capture(&tracker, "last", 10, 30));
    assert_eq!(sizes(), [10, 0, 0, 10]);
    assert!(tracker.captured_pods("ci", "j").0["well"].logs["r"].lost.is_some());
    assert_eq!(tracker.lock().bytes, 30);
    tracker.drop_job("j");
    assert_eq!(tracker.lock().bytes, 0);
}

#[test]
fn no_job_loses_a_log_to_another() {
    let tracker = PodTracker::default();
    for (job, uid) in [("a", "gone"), ("b", "there"), ("c", "wants")] {
        tracker.upsert(job, &pod(uid, "Failed", 0));
    }
    assert!(
        capture(&tracker, "gone", EARLY_MEMORY / 2, EARLY_MEMORY)
            && capture(&tracker, "there", EARLY_MEMORY / 2, EARLY_MEMORY)
    );
    tracker.mark_deleted("gone", None);
    assert!(
        capture(&tracker, "wants", EARLY_MEMORY / 2, EARLY_MEMORY),
        "a log that can be read again is dropped"
    );
    assert_eq!(bytes_of(&tracker, "b", "there"), 0);
    tracker.upsert("d", &pod("more", "Failed", 0));
    tracker.mark_deleted("wants", None);
    assert!(!capture(&tracker, "more", 1, EARLY_MEMORY));
    assert_eq!((bytes_of(&tracker, "a", "gone"), tracker.lock().bytes), (EARLY_MEMORY / 2, EARLY_MEMORY));
}

/// Jobs that wait for a silent node keep the logs of their deleted pods until the harvest deadline.
#[test]
fn a_namespace_makes_room_for_those_that_hold_less() {
    let tracker = PodTracker::default();
    for n in 0..4 {
        let uid = format!("kept-{n}");
        tracker.upsert(&format!("j-{n}"), &pod_of("large", &uid, "Failed", n));
        assert!(capture(&tracker, &uid, EARLY_MEMORY / 4, EARLY_MEMORY));
        tracker.mark_deleted(&uid, None);
    }
    for n in 0..3 {
        let uid = format!("small-{n}");
        tracker.upsert(&format!("s-{n}"), &pod_of("small", &uid, "Failed", n));
        let has_room = capture(&tracker, &uid, EARLY_MEMORY / 4, EARLY_MEMORY);
        tracker.mark_deleted(&uid, None);
        assert_eq!(has_room, n < 2, "{n}: then both hold the same");
    }
    let kept = |n: u8| {
        let (pods, _) = tracker.captured_pods("large", &format!("j-{n}"));
        pods[&format!("kept-{n}")].logs["r"].excerpt.bytes() > 0
    };
    assert_eq!([0, 1, 2, 3].map(kept), [false, false, true, true], "the oldest went");
    tracker.upsert("j-4", &pod_of("large", "more", "Failed", 9));
    assert!(!capture(&tracker, "more", 1, EARLY_MEMORY));
}

#[test]
fn a_run_is_captured_once_and_deleted_pods_are_limited() {
    let tracker = PodTracker::default();
    tracker.upsert("j", &pod("p", "Running", 0));
    assert!(tracker.begin_capture("p", "r").is_some());
    assert!(tracker.begin_capture("p", "r").is_none() && tracker.begin_capture("other", "r").is_none());
    for n in 0..DELETED_PODS_PER_JOB + 5 {
        let uid = format!("gone-{n}");
        tracker.upsert("j", &pod(&uid, "Failed", 0));
        assert!(tracker.mark_deleted(&uid, None));
    }
    let (pods, dropped_pods) = tracker.captured_pods("ci", "j");
    assert_eq!((pods.len(), dropped_pods), (DELETED_PODS_PER_JOB + 1, 5));
    assert!(!pods["p"].facts.gone);
    assert_eq!(
        (tracker.live_pods("j"), tracker.mark_unseen_deleted(&Default::default(), &BTreeSet::new())),
        (1, vec!["p".to_owned()])
    );
    tracker.gc(|_| Some(false));
    assert_eq!(tracker.pods_of_job("j"), Vec::<Uid>::new());
}

#[tokio::test(start_paused = true)]
async fn captures_get_time_to_end_and_are_then_cancelled() {
    let tracker = PodTracker::default();
    for uid in ["a", "b"] {
        tracker.upsert("j", &pod(uid, "Running", 0));
    }
    let (_a, b) = (tracker.begin_capture("a", "r").unwrap(), tracker.begin_capture("b", "r").unwrap());
    let second = Duration::from_secs(1);
    let (own, begun) = (tracker.clone(), tokio::time::Instant::now());
    let reader = tokio::spawn(async move {
        tokio::time::sleep(second / 2).await;
        own.end_capture("a", "r", Ok(EarlyLog::default()));
        b.cancelled().await;
        own.end_capture("b", "r", Err("it never ended".into()));
    });
    tracker.wait_for_captures("j", second).await;
    assert_eq!(begun.elapsed().as_millis(), 1_500, "the time starts again with each capture that ends");
    reader.await.unwrap();
    assert_eq!(tracker.captured_pods("ci", "j").0["b"].logs["r"].lost.as_deref(), Some("it never ended"));
    tracker.wait_for_captures("j", second).await;
    assert_eq!(begun.elapsed().as_millis(), 1_500, "nothing to wait for");
}
