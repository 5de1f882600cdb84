//! Refusals reach a sink that comes late, goes, and comes back; they never hold anybody up.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use job_handler_shared::{
    ledger::refusal::{Decision, Refusal},
    policy::set::{PolicyKind, PolicyRef},
    process::telemetry::Metrics,
};
use job_handler_webhook::{
    metrics::WebhookMetrics,
    refusal_sender::{Refusals, refusals},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

fn refusal(job: &str) -> Refusal {
    Refusal {
        decision: Decision::Refused,
        policy: PolicyRef {
            kind: PolicyKind::JobPolicy,
            namespace: Some("ci".into()),
            name: "p".into(),
            uid: "u".into(),
        },
        limit: "few".into(),
        namespace: "ci".into(),
        job: job.into(),
        uid: job.into(),
        stored: false,
        owner: None,
        message: "full\nreally".into(),
        at: Timestamp::UNIX_EPOCH,
    }
}

struct Sender {
    refusals: Refusals,
    metrics: WebhookMetrics,
    token: CancellationToken,
    task: JoinHandle<()>,
}

fn start(socket: &Path) -> Sender {
    let metrics = WebhookMetrics::new(&Metrics::default());
    let (refusals, courier) = refusals(socket.to_owned(), metrics.clone());
    let token = CancellationToken::new();
    let task = tokio::spawn(courier.run(token.clone()));
    Sender { refusals, metrics, token, task }
}

async fn accept(listener: &UnixListener) -> BufReader<UnixStream> {
    let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await;
    BufReader::new(accepted.expect("the webhook connects").unwrap().0)
}

async fn read(stream: &mut BufReader<UnixStream>) -> Option<String> {
    let mut line = String::new();
    let n =
        tokio::time::timeout(Duration::from_secs(20), stream.read_line(&mut line)).await.unwrap().unwrap();
    (n > 0).then(|| serde_json::from_str::<Refusal>(&line).unwrap().job)
}

#[tokio::test]
async fn a_sink_that_comes_late_and_comes_back_hears_all() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("refusals.sock");
    let sender = start(&socket);
    sender.refusals.tell(refusal("early"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut first = accept(&listener).await;
    assert_eq!(read(&mut first).await.as_deref(), Some("early"));
    drop((first, listener));
    std::fs::remove_file(&socket).unwrap();
    // What the dead connection swallowed is gone (it was handed over); what comes after it was noticed is not.
    let listener = UnixListener::bind(&socket).unwrap();
    let teller = async {
        for n in 0.. {
            sender.refusals.tell(refusal(&format!("later-{n}")));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heard = async { read(&mut accept(&listener).await).await.unwrap() };
    let heard = tokio::select! { () = teller => None, heard = heard => Some(heard) };
    assert!(heard.unwrap().starts_with("later-"));
    sender.token.cancel();
    sender.task.await.unwrap();
}

#[tokio::test]
async fn what_is_queued_at_a_shutdown_is_still_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("refusals.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let sender = start(&socket);
    for n in 0..100 {
        sender.refusals.tell(refusal(&n.to_string()));
    }
    sender.token.cancel();
    let mut stream = accept(&listener).await;
    for n in 0..100 {
        assert_eq!(read(&mut stream).await, Some(n.to_string()));
    }
    assert_eq!(read(&mut stream).await, None);
    sender.task.await.unwrap();
    assert_eq!(sender.metrics.refusals_dropped.get(), 0);
}

#[tokio::test]
async fn without_a_sink_the_queue_is_bounded_and_what_is_lost_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sender = start(&folder.path().join("nobody.sock"));
    for n in 0..3000 {
        sender.refusals.tell(refusal(&n.to_string()));
    }
    assert!(sender.metrics.refusals_dropped.get() >= 1900, "{}", sender.metrics.refusals_dropped.get());
    sender.token.cancel();
    tokio::time::timeout(Duration::from_secs(5), sender.task)
        .await
        .expect("a shutdown waits for nobody")
        .unwrap();
    assert_eq!(
        sender.metrics.refusals_dropped.get() + sender.metrics.refusals_sent.get(),
        3000,
        "each is accounted for"
    );
}
