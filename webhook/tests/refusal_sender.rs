//! Refusals reach a sink that starts late or restarts, and never delay a response.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

use std::{path::Path, time::Duration};

use job_handler_shared::{ledger::refusal::Refusal, process::telemetry::Metrics, testing::refusals};
use job_handler_webhook::{
    metrics::WebhookMetrics,
    refusal_sender::{self, RefusalQueue},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

fn refusal(job: &str) -> Refusal {
    Refusal { message: "full\nreally".into(), ..refusals::refusal(job) }
}

struct RunningSender {
    queue: RefusalQueue,
    metrics: WebhookMetrics,
    token: CancellationToken,
    task: JoinHandle<()>,
}

fn start(socket: &Path) -> RunningSender {
    let metrics = WebhookMetrics::new(&Metrics::default());
    let (queue, sender) = refusal_sender::channel(socket.to_owned(), metrics.clone());
    let token = CancellationToken::new();
    let task = tokio::spawn(sender.run(token.clone()));
    RunningSender { queue, metrics, token, task }
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
async fn refusals_reach_a_sink_that_starts_late_or_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("refusals.sock");
    let sender = start(&socket);
    sender.queue.push(refusal("early"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut first = accept(&listener).await;
    assert_eq!(read(&mut first).await.as_deref(), Some("early"));
    drop((first, listener));
    std::fs::remove_file(&socket).unwrap();
    // A line written into the broken connection is lost. Lines written after the break was noticed are not.
    let listener = UnixListener::bind(&socket).unwrap();
    let push = async {
        for n in 0.. {
            sender.queue.push(refusal(&format!("later-{n}")));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let received = async { read(&mut accept(&listener).await).await.unwrap() };
    let received = tokio::select! { () = push => None, job = received => Some(job) };
    assert!(received.unwrap().starts_with("later-"));
    sender.token.cancel();
    sender.task.await.unwrap();
}

#[tokio::test]
async fn queued_refusals_are_sent_at_a_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("refusals.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let sender = start(&socket);
    for n in 0..100 {
        sender.queue.push(refusal(&n.to_string()));
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
async fn without_a_sink_the_queue_is_bounded_and_drops_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sender = start(&folder.path().join("absent.sock"));
    for n in 0..3000 {
        sender.queue.push(refusal(&n.to_string()));
    }
    assert!(sender.metrics.refusals_dropped.get() >= 1900, "{}", sender.metrics.refusals_dropped.get());
    sender.token.cancel();
    tokio::time::timeout(Duration::from_secs(5), sender.task)
        .await
        .expect("a shutdown does not wait for the sink")
        .unwrap();
    assert_eq!(
        sender.metrics.refusals_dropped.get() + sender.metrics.refusals_sent.get(),
        3000,
        "every refusal is counted"
    );
}
