//! Reads request bodies within bounds: of each body, of the time it takes, and of all bodies in flight together.

use std::{sync::Arc, time::Duration};

use actix_web::web::{self, Bytes, BytesMut};
use futures::StreamExt;
use job_handler_shared::text::human_bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::{response::HttpReply, review::MAX_BODY};

/// Time for a client to send the request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a body that is not kept is read and discarded, so that the client can read the response.
const MAX_DISCARDED: usize = 64 << 20;
/// Bytes of all bodies in flight: two of the largest size, or 3,000 usual ones.
const MAX_IN_FLIGHT: usize = 16 << 20;

/// The bytes that bodies in flight may still take; one permit each. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_IN_FLIGHT)))
    }
}

/// A body, charged to the budget until it is dropped. Whoever answers a review drops it when it is parsed: while large
/// reviews wait for a decision, others have room.
#[derive(Debug)]
pub struct RequestBody {
    bytes: Bytes,
    /// Frees the body's part of the budget when it is dropped.
    _charge: BodyCharge,
}

impl AsRef<[u8]> for RequestBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a body takes of the budget.
#[derive(Debug, Default)]
struct BodyCharge(Option<OwnedSemaphorePermit>);

/// Why a body is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyRefusal {
    TooLarge,
    OverBudget,
}

impl BodyCharge {
    /// Adds bytes; returns false if the budget is used up.
    fn add(&mut self, budget: &BodyBudget, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else { return false };
        let Ok(more) = budget.0.clone().try_acquire_many_owned(bytes) else { return false };
        match &mut self.0 {
            Some(permit) => permit.merge(more),
            None => self.0 = Some(more),
        }
        true
    }
}

/// Reads a body. The error is the response: 408, 413, or 429 if too much is in flight, which the apiserver repeats after
/// the header `Retry-After` (`k8s.io/client-go/rest`, `withRetry`).
pub(super) async fn read_body(payload: web::Payload, budget: &BodyBudget) -> Result<RequestBody, HttpReply> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(payload, budget)).await {
        Ok(body) => body,
        Err(_) => Err(HttpReply::text(
            408,
            format!("timed out after {} s waiting for the body", BODY_TIMEOUT.as_secs()),
        )),
    }
}

async fn collect(mut payload: web::Payload, budget: &BodyBudget) -> Result<RequestBody, HttpReply> {
    let broken = |error| HttpReply::text(400, format!("cannot read the body: {error}"));
    let (mut body, mut charge, mut total) = (CollectedBody::default(), BodyCharge::default(), 0);
    let mut refusal = None;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(broken)?;
        total += chunk.len();
        if refusal.is_none() {
            refusal = match total {
                ..=MAX_BODY if charge.add(budget, chunk.len()) => None,
                ..=MAX_BODY => Some(BodyRefusal::OverBudget),
                _ => Some(BodyRefusal::TooLarge),
            };
        }
        if refusal.is_none() {
            body.add(chunk);
        } else {
            (body, charge) = Default::default();
            if total > MAX_BODY + MAX_DISCARDED {
                break;
            }
        }
    }
    match refusal {
        None => Ok(RequestBody { bytes: body.into_bytes(), _charge: charge }),
        Some(BodyRefusal::TooLarge) => Err(HttpReply::text(
            413,
            format!("expected at most {}, the body is larger", human_bytes(MAX_BODY as u64)),
        )),
        Some(BodyRefusal::OverBudget) => Err(HttpReply::text(
            429,
            format!("requests of {} are in flight: try again", human_bytes(MAX_IN_FLIGHT as u64)),
        )),
    }
}

/// The chunks of a body. Most reviews arrive in one, which needs no copy.
#[derive(Default)]
enum CollectedBody {
    #[default]
    Empty,
    One(Bytes),
    Many(BytesMut),
}

impl CollectedBody {
    fn add(&mut self, chunk: Bytes) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One(chunk),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity((first.len() + chunk.len()) * 4);
                all.extend_from_slice(&first);
                all.extend_from_slice(&chunk);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&chunk);
                Self::Many(all)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::One(only) => only,
            Self::Many(all) => all.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_charged_until_the_body_is_dropped() {
        let budget = BodyBudget::default();
        let (mut first, mut second) = (BodyCharge::default(), BodyCharge::default());
        assert!(first.add(&budget, MAX_IN_FLIGHT / 2) && first.add(&budget, MAX_IN_FLIGHT / 2 - 1));
        assert!(second.add(&budget, 1) && !second.add(&budget, 1));
        drop(first);
        assert!(second.add(&budget, MAX_IN_FLIGHT - 1) && !second.add(&budget, 1));
    }

    #[test]
    fn chunks_are_joined_in_their_order() {
        for count in 0..5_u8 {
            let mut body = CollectedBody::default();
            (0..count).for_each(|n| body.add(Bytes::from(vec![n; 3])));
            let expected: Vec<u8> = (0..count).flat_map(|n| [n; 3]).collect();
            assert_eq!(body.into_bytes(), expected);
        }
    }
}
