//! Lines on the refusal socket. Each valid line arrives whatever is around it, and the sink writes nothing but Events
//! about it.

use std::time::Duration;

use job_handler_shared::{
    ledger::refusal::{MAX_LINE_BYTES, Refusal},
    names::is_object_name,
    process::telemetry::Metrics,
    testing::apiserver::Apiserver,
};
use job_handler_sink::{
    metrics::SinkMetrics,
    notify::{recorder::Recorder, refusal_listener, refusal_writer},
    observe::store::Store,
};
use tokio::sync::mpsc;

use crate::harness::block_on;

/// Longest note of an Event, bytes (`pkg/apis/core/validation/events.go`).
const MAX_NOTE: usize = 1024;
/// Longer than any write of the writer takes.
const WRITTEN_AFTER: Duration = Duration::from_secs(30);

/// Checks one input.
pub fn check(bytes: &[u8]) {
    block_on(async {
        let metrics = SinkMetrics::new(&Metrics::default());
        let received = received(bytes, &metrics).await;
        assert_eq!(received, valid_lines(bytes));
        for refusal in &received {
            let line = serde_json::to_vec(refusal).unwrap();
            assert_eq!(Refusal::parse(&line).unwrap(), *refusal);
        }
        let apiserver = Apiserver::default();
        write(received, &apiserver, metrics).await;
        for event in apiserver.all("events") {
            let note = event["note"].as_str().unwrap();
            assert!(note.len() <= MAX_NOTE, "{note}");
        }
        for call in apiserver.calls() {
            assert!(writes_event(&call), "{call}");
        }
    });
}

async fn received(bytes: &[u8], metrics: &SinkMetrics) -> Vec<Refusal> {
    let (sender, mut refusals) = mpsc::channel(bytes.len() + 1);
    refusal_listener::receive(bytes, sender, metrics.clone()).await;
    let mut received = Vec::new();
    while let Some(refusal) = refusals.recv().await {
        received.push(refusal);
    }
    received
}

/// What stands between line ends. A last line without its end was cut off.
fn valid_lines(bytes: &[u8]) -> Vec<Refusal> {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    lines.pop();
    let fits = lines.into_iter().filter(|line| line.len() <= MAX_LINE_BYTES);
    fits.filter_map(|line| Refusal::parse(line).ok()).collect()
}

async fn write(refusals: Vec<Refusal>, apiserver: &Apiserver, metrics: SinkMetrics) {
    let (sender, inbox) = mpsc::channel(refusals.len() + 1);
    let recorder = Recorder::new(apiserver.client(), "fuzz");
    let writer =
        tokio::spawn(refusal_writer::run(inbox, Store::default(), recorder, metrics, |_: &Refusal| ()));
    for refusal in refusals {
        sender.send(refusal).await.unwrap();
    }
    tokio::time::sleep(WRITTEN_AFTER).await;
    assert!(!writer.is_finished(), "the writer has ended");
    writer.abort();
}

/// Whether a call, as `METHOD path code`, is about an Event in one namespace.
fn writes_event(call: &str) -> bool {
    let path = call.split(' ').nth(1).unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["", "apis", "events.k8s.io", "v1", "namespaces", namespace, "events"]
        | ["", "apis", "events.k8s.io", "v1", "namespaces", namespace, "events", _] => {
            is_object_name(namespace)
        }
        _ => false,
    }
}
