//! What an actor receives.

use std::time::Instant;

use tokio::sync::oneshot;

use crate::limit::{Attempt, Verdict};

/// A message to the actor of a ledger.
#[derive(Debug)]
pub enum ActorMessage {
    /// Decide about an attempt.
    Decide(Box<DecisionRequest>),
    /// Take back the grant of this `request.uid`: its caller never received the answer.
    Revoke(String),
    /// Remove the attempts whose outcome is known.
    RemoveResolved,
    /// Remove the attempts that expired without a Job.
    RemoveExpired,
}

/// An attempt that waits for its verdict.
#[derive(Debug)]
pub struct DecisionRequest {
    /// What to decide about.
    pub attempt: Attempt,
    /// When the request arrived.
    pub arrived: Instant,
    /// Receives the verdict; closed if the caller is gone.
    pub reply: oneshot::Sender<Verdict>,
}
