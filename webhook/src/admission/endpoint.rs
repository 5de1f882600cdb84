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

/// Answers the review in `body` by `answer`. Log lines of `answer` carry the review's span.
pub(super) async fn answer_review(
    endpoint: Endpoint,
    body: &[u8],
    state: &WebhookState,
    answer: impl AsyncFnOnce(&AdmissionReview) -> (HttpReply, ReviewVerdict),
) -> HttpReply {
    let start = Instant::now();
    let (reply, verdict) = match review::parse(body) {
        Ok(review) => {
            let answer = async {
                let (reply, verdict) = answer(&review).await;
                tracing::debug!(verdict = verdict.as_str(), "answered the review");
                (reply, verdict)
            };
            answer.instrument(span(endpoint, &review)).await
        }
        Err(error) => (HttpReply::text(400, error.to_string()), ReviewVerdict::Bad),
    };
    state.metrics.review(endpoint, verdict, start.elapsed());
    reply
}

/// At level debug, because every log line of a handler is, and an enabled span costs about a microsecond.
fn span(endpoint: Endpoint, review: &AdmissionReview) -> Span {
    let job = review.object.job();
    let (name, generate_name, uid) = job.map_or(("", "", ""), |job| {
        (job.snapshot.name.as_str(), job.generate_name.as_str(), job.snapshot.uid.as_str())
    });
    tracing::debug_span!(
        "review",
        endpoint = endpoint.as_str(),
        operation = review.object.operation(),
        namespace = review.namespace,
        name,
        generate_name,
        uid,
        request_uid = review.uid,
    )
}
