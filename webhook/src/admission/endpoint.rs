//! The steps that all endpoints share: parse, trace, answer, measure.

use std::time::Instant;

use tracing::{Instrument, Span};

use crate::{
    admission::{
        response::HttpReply,
        review::{self, AdmissionReview},
        state::WebhookState,
    },
    metrics::{Endpoint, ReviewVerdict},
};

/// Answers the review in `body` by `answer`, which begins when the body is dropped. Log lines of `answer` carry the review's span.
pub(super) async fn answer_review(
    endpoint: Endpoint,
    body: impl AsRef<[u8]>,
    state: &WebhookState,
    answer: impl AsyncFnOnce(AdmissionReview) -> (HttpReply, ReviewVerdict),
) -> HttpReply {
    let start = Instant::now();
    let parsed = review::parse(body.as_ref());
    // The answer may take seconds, in which other bodies need the room.
    drop(body);
    let (reply, verdict) = match parsed {
        Ok(review) => {
            let span = span(endpoint, &review);
            let answer = async {
                let (reply, verdict) = answer(review).await;
                tracing::debug!(verdict = verdict.as_str(), "answered the review");
                (reply, verdict)
            };
            answer.instrument(span).await
        }
        Err(error) => (HttpReply::text(400, error.to_string()), ReviewVerdict::Bad),
    };
    state.metrics.review(endpoint, verdict, start.elapsed());
    reply
}

/// At level debug, as every log line about one review: an enabled span costs about a microsecond. A ledger's actor, which
/// answers many reviews at once, lists their Jobs in its warnings.
fn span(endpoint: Endpoint, review: &AdmissionReview) -> Span {
    let job = review.object.job();
    let (job, generate_name, uid) = job.map_or(("", "", ""), |job| {
        (job.snapshot.name.as_str(), job.generate_name.as_str(), job.snapshot.uid.as_str())
    });
    tracing::debug_span!(
        "review",
        endpoint = endpoint.as_str(),
        operation = review.object.operation(),
        namespace = review.namespace,
        // Not `name`, which is the span's own name in JSON.
        job,
        generate_name,
        uid,
        request_uid = review.uid,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use job_handler_shared::policy::{reference::Labels, set::PolicySet};
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::mutate::mutate;

    #[test]
    fn log_lines_of_a_review_name_the_job_and_the_step() {
        let (output, writer) = std::io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(Arc::new(writer))
            .finish();
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "r-1", "kind": {"group": "batch", "version": "v1", "kind": "Job"}, "operation": "CREATE",
            "namespace": "ci", "object": {"metadata": {"generateName": "build-", "uid": "u-1"}}}});
        let state = WebhookState::fixed(PolicySet::default(), [("ci".to_owned(), Labels::default())]);
        tracing::subscriber::with_default(subscriber, || {
            futures::executor::block_on(mutate(body.to_string().as_bytes(), &state))
        });
        let line: Value = serde_json::from_reader(output).unwrap();
        assert_eq!(line["fields"]["verdict"], "allowed");
        let expected = json!({"endpoint": "mutate", "operation": "CREATE", "namespace": "ci", "job": "",
            "name": "review", "generate_name": "build-", "uid": "u-1", "request_uid": "r-1"});
        assert_eq!(line["span"], expected);
    }
}
