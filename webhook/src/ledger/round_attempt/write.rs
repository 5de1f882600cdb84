//! Stores the outcome of a round, and creates a missing ledger.

use std::time::Instant;

use job_handler_shared::ledger::crd::LedgerContents;

use crate::{
    ledger::{
        client::WriteResult,
        count,
        freshness::{Freshness, LedgerOrigin},
        known_ledgers::KnownLedger,
        provision,
        round_attempt::{RoundBasis, RoundError, RoundRunner},
    },
    limit::{Attempt, EarlierSlots, Verdict},
};

/// The grants in a decision.
#[derive(Clone, Copy)]
pub(super) struct GrantCount {
    /// Those that the ledger did not contain yet.
    new: usize,
    /// Those that it contained: an earlier write was stored and its response lost.
    repeated: usize,
}

impl RoundRunner {
    /// Stores the decision if it has to be.
    pub(super) async fn commit(
        &mut self,
        basis: &RoundBasis,
        contents: &LedgerContents,
        grants: GrantCount,
        expired: bool,
    ) -> Result<(), RoundError> {
        let before = &basis.ledger.contents;
        let revokes = self.revoked.iter().any(|request| holds(before, request));
        let refuses = contents.refused.keys().any(|uid| !before.refused.contains_key(uid));
        let has_reason =
            grants.new + grants.repeated > 0 || self.housekeeping || revokes || expired || refuses;
        if before != contents && has_reason {
            self.write(&basis.ledger, contents, grants.new).await
        } else if grants.repeated > 0 && basis.origin != LedgerOrigin::Read {
            // Without a write it is unknown whether the stored ledger still holds the grant.
            self.freshness = Freshness::Unknown;
            Err(RoundError::Retry)
        } else {
            Ok(())
        }
    }

    async fn write(
        &mut self,
        known: &KnownLedger,
        contents: &LedgerContents,
        grants: usize,
    ) -> Result<(), RoundError> {
        let context = self.context.clone();
        let name = self.id.name();
        let mut ledger = known.ledger.clone();
        ledger.spec.set(contents);
        context.metrics.ledger_writes.inc();
        if grants == 0 {
            context.metrics.ledger_removals.inc();
        }
        self.batching.write_started(grants, Instant::now());
        self.granted_since.get_or_insert_with(Instant::now);
        match context.ledger_client.replace(name, ledger).await {
            WriteResult::Written(ledger) => {
                self.batching.write_stored(Instant::now());
                match KnownLedger::parse(*ledger) {
                    Ok(known) => context.known_ledgers.record(name, &known),
                    Err(_) => self.freshness = Freshness::Unknown,
                }
                Ok(())
            }
            WriteResult::Conflict => {
                context.metrics.ledger_conflicts.inc();
                context.known_ledgers.record_conflict(name);
                self.batching.write_conflicted(Instant::now());
                self.freshness = Freshness::NewerThan(known.version);
                self.granted_since = None;
                Err(RoundError::Retry)
            }
            WriteResult::Unknown(why) => {
                tracing::warn!("the answer to a write of the ledger was lost, reading it again: {why}");
                self.freshness = Freshness::Unknown;
                Err(RoundError::RetryUnknownWrite)
            }
            WriteResult::Rejected(why) => Err(RoundError::Rejected(why)),
            WriteResult::Failed(why) => Err(RoundError::Failed(why)),
        }
    }

    /// Creates a missing ledger, unless one that contained attempts may have been deleted a moment ago.
    pub(crate) async fn create_ledger(&mut self, missing_at: Instant) -> RoundError {
        let name = self.id.name();
        let known_ledgers = &self.context.known_ledgers;
        if known_ledgers.appeared_since(name, missing_at) {
            self.freshness = Freshness::Unknown;
            return RoundError::Retry;
        }
        let policies = self.context.policies.current().clone();
        let may_have_granted = count::may_have_granted(&policies, &self.id);
        if let Err(left) = known_ledgers.may_recreate(name, missing_at, may_have_granted) {
            return RoundError::Failed(provision::missing_message(name, left));
        }
        // Whichever replica creates it, the next read finds it.
        self.freshness = Freshness::Unknown;
        match self.context.ledger_client.create_empty(name).await {
            WriteResult::Rejected(why) | WriteResult::Failed(why) => RoundError::Failed(why),
            WriteResult::Written(_) | WriteResult::Conflict | WriteResult::Unknown(_) => RoundError::Retry,
        }
    }
}

pub(super) fn count_grants(
    attempts: &[&Attempt],
    verdicts: &[Verdict],
    before: &LedgerContents,
    after: &LedgerContents,
) -> GrantCount {
    let is_recorded = |attempt: &Attempt| {
        let keeps = attempt.earlier_slots != EarlierSlots::Nothing;
        holds(after, &attempt.uid) || (keeps && after.held.contains_key(&attempt.job.uid))
    };
    let granted = attempts.iter().zip(verdicts).filter(|(attempt, verdict)| {
        **verdict == Verdict::Granted && attempt.takes_slot() && is_recorded(attempt)
    });
    let was_recorded = |attempt: &Attempt| {
        let uid = &attempt.job.uid;
        holds(before, &attempt.uid) == holds(after, &attempt.uid)
            && before.held.get(uid) == after.held.get(uid)
    };
    let (repeated, new): (Vec<_>, Vec<_>) = granted.partition(|(attempt, _)| was_recorded(attempt));
    GrantCount { new: new.len(), repeated: repeated.len() }
}

pub(super) fn holds(contents: &LedgerContents, request: &str) -> bool {
    contents.pending.values().any(|attempts| attempts.contains_key(request))
}
