//! Deletes one Job, if it is still what was looked at.

use job_handler_shared::{job::group::group_label_value, keys, policy::cleanup::Propagation};
use kube::Client;

use crate::prune::command::{
    Candidate, DryRun, Options,
    pages::{TRIES, is_passing, pause},
};
use crate::{
    jobs::patch::{self, Written},
    prune::keep::{self, Spared},
};

/// A Job that changes again and again is left alone after so many looks.
const LOOKS: u32 = 3;

/// What came of a Job that was to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// It is deleted, or would be; a remark, where there is more to say.
    Purged(&'static str),
    /// It stays, and why.
    Spared(String),
    /// It is not deleted, and why.
    Failed(String),
}

/// Why a Job that is not among the newest stays.
pub(super) fn spared(candidate: &Candidate, options: &Options) -> Option<String> {
    let awaits = candidate.awaits.filter(|_| !options.unharvested);
    match (keep::may_go(&candidate.job, awaits.is_none()), awaits) {
        (Ok(()), _) => None,
        (Err(Spared::NotHarvested), Some(why)) => {
            Some(format!("{why}; --unharvested deletes it all the same"))
        }
        (Err(spared), _) => Some(spared.to_string()),
    }
}

/// Deletes a Job; one that has changed is looked at again.
pub(super) async fn delete(
    client: &Client,
    options: &Options,
    mut candidate: Candidate,
    group: &str,
) -> Deed {
    if options.dry_run == DryRun::Client {
        return Deed::Purged("");
    }
    let dry_run = options.dry_run == DryRun::Server;
    let (mut looks, mut attempt) = (0, 0);
    loop {
        attempt += 1;
        match patch::delete(client, &candidate.job, Propagation::Foreground, dry_run).await {
            Ok(Written::Done(_)) => return Deed::Purged(""),
            Ok(Written::Gone) => return Deed::Purged(": it was gone already"),
            Ok(Written::Changed) if looks < LOOKS => {}
            Ok(Written::Changed) => return Deed::Failed("it changes all the time: run again".to_owned()),
            Err(error) if is_passing(&error) && attempt < TRIES => {
                tracing::warn!("{error}; trying again");
                pause(attempt).await;
                continue;
            }
            Err(error) => return Deed::Failed(error.to_string()),
        }
        looks += 1;
        match patch::look(client, &candidate.job).await {
            // Another Job may have its name by now: that one was never looked at.
            Ok(None) => return Deed::Purged(": it was gone already"),
            Ok(Some(now)) => {
                if group_label_value(&now.labels, &options.group_label).ok() != Some(group) {
                    return Deed::Spared("it has left its group meanwhile".to_owned());
                }
                candidate = Candidate::from(now);
                if let Some(why) = spared(&candidate, options) {
                    return Deed::Spared(why);
                }
            }
            Err(error) => return Deed::Failed(error.to_string()),
        }
    }
}

/// Why a result of this Job may still have to be stored, as far as the Job itself tells: policies and results are not
/// read here, as whoever runs this may have no right to. The webhook puts the TTL aside where a policy asks for the
/// result, it leaves a mark on whatever a policy asks something of, and the sink names the result on the Job once it is
/// stored.
pub(super) fn awaits_harvest(job: &job_handler_shared::job::snapshot::JobSnapshot) -> Option<&'static str> {
    let has = |key| job.annotations.contains_key(key);
    let opted_out = job.labels.get(keys::ENABLED).is_some_and(|value| value == "false");
    if has(keys::RESULTS) || opted_out {
        None
    } else if has(keys::TTL) {
        Some("its result is not stored yet")
    } else if has(keys::STAMPED) {
        Some("a policy selected it and no stored result is named on it")
    } else {
        None
    }
}
