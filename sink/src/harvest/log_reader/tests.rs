use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;

const TEXT: &[u8] = b"one\ntwo\n";

/// What the node answers to one call.
#[derive(Clone, Copy)]
enum Answer {
    Log(&'static [u8]),
    Status(u16),
    Hang,
}

/// A reader whose calls get these answers in turn, the last one repeatedly; and the number of calls.
fn reader(answers: &'static [Answer]) -> (LogReader, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        let answer = answers[call.min(answers.len() - 1)];
        async move {
            let (code, body) = match answer {
                Answer::Log(text) => (200, text.to_vec()),
                Answer::Status(code) => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "refused", "reason": if code == 404 { "NotFound" } else { "Test" }, "code": code});
                    (code, serde_json::to_vec(&status).unwrap())
                }
                Answer::Hang => std::future::pending().await,
            };
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body)).unwrap())
        }
    });
    (LogReader::new(Client::new(service, "default")), calls)
}

fn run() -> LogRun<'static> {
    LogRun { namespace: "ci", pod: "build-x", container: "main", previous: false, id: "containerd://1" }
}

async fn read(reader: &LogReader, pace: Pace, max: usize) -> CapturedLog {
    reader.read(run(), "node", max, pace, Instant::now() + JOB_TIMEOUT).await
}

#[tokio::test]
async fn a_log_is_read_in_the_regular_lane() {
    let (reader, calls) = reader(&[Answer::Log(TEXT)]);
    let log = read(&reader, Pace::Regular, 100).await;
    assert_eq!((log.excerpt.head.as_slice(), log.lost, log.deferred), (TEXT, None, false));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn without_budget_nothing_is_read() {
    let (reader, calls) = reader(&[Answer::Log(TEXT)]);
    let log = read(&reader, Pace::Regular, 0).await;
    assert_eq!(log.lost, Some(LogLoss::OverBudget));
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_passing_unconfirmed_or_final() {
    const PLACEHOLDER: &[u8] = b"unable to retrieve container logs for containerd://0a1b";
    let removed = |reason: &str| Some(LogLoss::Unconfirmed(reason.to_owned()));
    let passing = || Some(LogLoss::Passing("refused".to_owned()));
    for (answers, expected_calls, lost) in [
        (
            &[Answer::Log(PLACEHOLDER)][..],
            1,
            removed("unable to retrieve container logs for containerd://0a1b"),
        ),
        (&[Answer::Status(404)], 1, Some(LogLoss::Final("refused".to_owned()))),
        (&[Answer::Status(400)], 1, removed("refused")),
        (&[Answer::Status(503)], 3, passing()),
        (&[Answer::Status(429)], 3, passing()),
        (&[Answer::Status(500), Answer::Log(TEXT)], 2, None),
        (&[Answer::Status(429), Answer::Status(429), Answer::Log(TEXT)], 3, None),
    ] {
        for pace in [Pace::Regular, Pace::Slow] {
            let (reader, calls) = reader(answers);
            let log = read(&reader, pace, 100).await;
            assert_eq!((&log.lost, log.deferred), (&lost, false));
            assert_eq!(calls.load(Ordering::Relaxed), expected_calls, "{lost:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_without_an_answer_is_deferred_and_read_in_the_slow_lane() {
    let (reader, calls) = reader(&[Answer::Hang, Answer::Log(TEXT)]);
    let begun = Instant::now();
    let log = read(&reader, Pace::Regular, 100).await;
    assert!(log.deferred && log.lost.is_none());
    assert_eq!(begun.elapsed(), FIRST_ANSWER);
    let log = read(&reader, Pace::Slow, 100).await;
    assert_eq!((log.excerpt.head.as_slice(), log.lost, log.deferred), (TEXT, None, false));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_never_answered_may_be_read_later() {
    let (reader, calls) = reader(&[Answer::Hang]);
    let begun = Instant::now();
    let log = read(&reader, Pace::Slow, 100).await;
    assert_eq!(log.lost, Some(LogLoss::Passing("the node did not answer in time".to_owned())));
    assert!(begun.elapsed() <= JOB_TIMEOUT);
    assert!((1..=3).contains(&calls.load(Ordering::Relaxed)));
}

#[tokio::test(start_paused = true)]
async fn logs_of_a_slow_node_are_deferred_without_a_call() {
    let (reader, calls) = reader(&[Answer::Hang]);
    for _ in 0..3 {
        assert!(read(&reader, Pace::Regular, 100).await.deferred);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2, "the third one is deferred at once");
}

#[tokio::test(start_paused = true)]
async fn an_early_read_repeats_in_the_slow_lane() {
    let (reader, calls) = reader(&[Answer::Hang, Answer::Log(TEXT)]);
    let stop = CancellationToken::new();
    let log = reader.read_early(run(), "node", CaptureMode::Read, 100, |_| true, stop).await.unwrap();
    assert_eq!((log.excerpt.head.as_slice(), log.lost), (TEXT, None));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_early_read_ends_when_it_is_stopped() {
    for mode in [CaptureMode::Read, CaptureMode::FollowNow, CaptureMode::FollowLong] {
        let (reader, _calls) = reader(&[Answer::Hang]);
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            stopper.cancel();
        });
        let begun = Instant::now();
        let failed = reader.read_early(run(), "node", mode, 100, |_| true, stop).await.unwrap_err();
        assert!(failed.starts_with("the node had not answered"), "{failed}");
        assert!(begun.elapsed() < FIRST_ANSWER);
    }
}

#[tokio::test]
async fn an_early_read_without_memory_keeps_the_end() {
    let (reader, _calls) = reader(&[Answer::Log(TEXT)]);
    let stop = CancellationToken::new();
    let log = reader.read_early(run(), "node", CaptureMode::Read, 4, |_| false, stop).await.unwrap();
    assert_eq!((log.excerpt.head.as_slice(), log.excerpt.tail.as_slice()), (&b""[..], &b"o\n"[..]));
    assert_eq!(log.excerpt.length, 8);
}
