//! The one-shot cleaner: deletes all finished Jobs but the newest of each (namespace, label value), page by page,
//! remembering one Job per group. The decisions are those of [`crate::prune`], as in the running sink.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Write},
    time::Duration,
};

use job_handler_shared::{
    group::{NoGroup, group_value},
    job::JobSnapshot,
    keys, names,
    policy::{Keep, Propagation},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client, api::ListParams};

use crate::{
    api::{ApiError, call},
    mark::{self, Written},
    prune::{self, Keepers, Ranked, Spared},
};

/// A list that ran too old is begun again this often.
const RELISTS: usize = 10;
/// Tries per page.
const TRIES: u32 = 5;

/// Whether anything is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Jobs are deleted.
    #[default]
    None,
    /// Only planned.
    Client,
    /// The apiserver checks each deletion and does not carry it out.
    Server,
}

/// What the cleaner was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Label key that makes groups.
    pub group_label: String,
    /// Namespaces; none = all but those never touched.
    pub namespaces: Vec<String>,
    /// Jobs per page.
    pub page: u32,
    /// Whether anything is deleted.
    pub dry_run: DryRun,
    /// Also deletes Jobs whose result is, or may be, still to be stored.
    pub unharvested: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// (namespace, group) pairs.
    pub groups: usize,
    /// Jobs deleted, or that would be.
    pub purged: usize,
    /// Jobs that stay.
    pub skipped: usize,
    /// Deletions that failed.
    pub failed: usize,
}

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A key that no Job can have.
    #[error("`{0}` is not a label key: expected [prefix/]name, such as argocd.argoproj.io/instance")]
    Key(String),
    /// The Jobs could not be listed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Nobody reads our lines any more.
    #[error("cannot write the report: {0}")]
    Output(#[from] io::Error),
}

/// Prunes once and writes a line per Job to `out`.
///
/// # Errors
/// Where Jobs cannot be listed or lines not written; a deletion that fails is only counted.
pub async fn prune(client: Client, options: &Options, out: &mut impl Write) -> Result<Report, CleanError> {
    if !is_label_key(&options.group_label) {
        return Err(CleanError::Key(options.group_label.clone()));
    }
    let mut run =
        Run { client: client.clone(), options, out, report: Report::default(), groups: HashMap::new() };
    if options.namespaces.is_empty() {
        run.list(&Api::all(client)).await?;
    } else {
        for namespace in &options.namespaces {
            run.list(&Api::namespaced(client.clone(), namespace)).await?;
        }
    }
    run.keepers()?;
    let report = &run.report;
    let dry = if options.dry_run == DryRun::None { "" } else { " (dry run: nothing was deleted)" };
    writeln!(
        run.out,
        "Found {} (namespace, group) pairs: {} purged, {} skipped, {} failed{dry}",
        report.groups, report.purged, report.skipped, report.failed
    )?;
    Ok(run.report)
}

/// What is remembered of a group: the Job that stays.
struct Group {
    keepers: Keepers,
    newest: Option<Box<JobSnapshot>>,
    /// The keeper has been seen to be there by a GET.
    fetched: bool,
}

struct Run<'a, W> {
    client: Client,
    options: &'a Options,
    out: &'a mut W,
    report: Report,
    groups: HashMap<(String, String), Group>,
}

impl<W: Write> Run<'_, W> {
    async fn list(&mut self, api: &Api<Job>) -> Result<(), CleanError> {
        let mut relists = 0;
        let first = ListParams::default().labels(&self.options.group_label).limit(self.options.page);
        let mut params = first.clone();
        loop {
            match page(api, &params).await {
                Ok(page) => {
                    for job in &page.items {
                        self.job(JobSnapshot::from(job)).await?;
                    }
                    match page.metadata.continue_.filter(|token| !token.is_empty()) {
                        Some(token) => params = params.continue_token(&token),
                        None => return Ok(()),
                    }
                }
                // The list ran too old. What was decided stays right: it only ever needed a newer Job. Jobs met again are
                // offered again, which changes nothing but their lines.
                Err(ApiError::Refused { code: 410, .. }) if relists < RELISTS => {
                    relists += 1;
                    params = first.clone();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn job(&mut self, job: JobSnapshot) -> Result<(), CleanError> {
        let all = self.options.namespaces.is_empty();
        if all && keys::EXCLUDED_NAMESPACES.contains(&job.namespace.as_str()) {
            return Ok(());
        }
        let value = match group_value(&job.labels, &self.options.group_label) {
            Ok(value) => value.to_owned(),
            Err(NoGroup::MissingLabel(_)) => return Ok(()),
            Err(none) => return self.skip(&job, "", &none),
        };
        if job.deleting_since.is_some() {
            return self.skip(&job, &value, &prune::Spared::Deleting);
        }
        let key = (job.namespace.clone(), value.clone());
        if !self.groups.contains_key(&key) {
            self.report.groups += 1;
        }
        let group = self.groups.entry(key.clone()).or_insert_with(|| Group {
            keepers: Keepers::new(Keep { newest: 1, newest_succeeded: 0 }),
            newest: None,
            fetched: false,
        });
        if group.newest.as_ref().is_some_and(|newest| newest.uid == job.uid) {
            return Ok(());
        }
        let out = group.keepers.offer(Ranked::from(&job));
        let loser = if out.iter().any(|ranked| ranked.uid == job.uid) {
            Some(job)
        } else {
            group.fetched = false;
            group.newest.replace(Box::new(job)).map(|older| *older)
        };
        match loser {
            Some(loser) => self.purge(loser, &key).await,
            None => Ok(()),
        }
    }

    async fn purge(&mut self, job: JobSnapshot, key: &(String, String)) -> Result<(), CleanError> {
        let awaits = awaits_harvest(&job).filter(|_| !self.options.unharvested);
        match (prune::may_go(&job, awaits.is_none()), awaits) {
            (Ok(()), _) => {}
            (Err(Spared::NotHarvested), Some(why)) => {
                let why = format!("{why}; --unharvested deletes it all the same");
                return self.skip(&job, &key.1, &why);
            }
            (Err(spared), _) => return self.skip(&job, &key.1, &spared),
        }
        if let Some(group) = self.groups.get_mut(key)
            && !group.fetched
            && let Some(newest) = &group.newest
        {
            match mark::look(&self.client, newest).await {
                Ok(Some(there)) if there.deleting_since.is_none() => group.fetched = true,
                Ok(_) => {
                    let why =
                        format!("the newest of its group, {}, is gone meanwhile: run again", newest.name);
                    return self.skip(&job, &key.1, &why);
                }
                Err(error) => {
                    self.report.failed += 1;
                    return self.line("PURGE", &job, &key.1, &format_args!("FAILED: {error}"));
                }
            }
        }
        let deleted = match self.options.dry_run {
            DryRun::Client => Ok(Written::Gone),
            dry_run => {
                let dry_run = dry_run == DryRun::Server;
                mark::delete(&self.client, &job, Propagation::Foreground, dry_run).await
            }
        };
        match deleted {
            Ok(Written::Done(_) | Written::Gone) => {
                self.report.purged += 1;
                let dry = match self.options.dry_run {
                    DryRun::None => "",
                    DryRun::Client => " (dry run)",
                    DryRun::Server => " (server dry run)",
                };
                self.line("PURGE", &job, &key.1, &format_args!("SUCCESS{dry}"))
            }
            Ok(Written::Changed) => {
                // It is not what was looked at any more: perhaps another Job by the same name.
                self.report.failed += 1;
                self.line("PURGE", &job, &key.1, &"FAILED: it has changed meanwhile, run again")
            }
            Err(error) => {
                self.report.failed += 1;
                self.line("PURGE", &job, &key.1, &format_args!("FAILED: {error}"))
            }
        }
    }

    /// Lines for those that stay, at the end: only then is it known.
    fn keepers(&mut self) -> Result<(), CleanError> {
        let mut keepers: Vec<_> = std::mem::take(&mut self.groups)
            .into_iter()
            .filter_map(|((namespace, value), group)| Some(((namespace, value), group.newest?)))
            .collect();
        keepers.sort_by(|a, b| a.0.cmp(&b.0));
        for ((_, value), job) in keepers {
            self.skip(&job, &value, &"the newest of its group")?;
        }
        Ok(())
    }

    fn skip(&mut self, job: &JobSnapshot, value: &str, why: &dyn fmt::Display) -> Result<(), CleanError> {
        self.report.skipped += 1;
        self.line("SKIP", job, value, why)
    }

    fn line(
        &mut self,
        word: &str,
        job: &JobSnapshot,
        value: &str,
        why: &dyn fmt::Display,
    ) -> Result<(), CleanError> {
        let Options { group_label, .. } = self.options;
        Ok(writeln!(
            self.out,
            "{word:<5} {}/{}  {group_label}={value}  {}  {why}",
            job.namespace, job.name, job.created
        )?)
    }
}

/// Why a result of this Job may still have to be stored, as far as the Job itself tells: policies and results are not
/// read here, as whoever runs this may have no right to. The webhook puts the TTL aside where a policy asks for the
/// result, it stamps whatever a policy selects, and the sink names the result on the Job once it is stored.
fn awaits_harvest(job: &JobSnapshot) -> Option<&'static str> {
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

/// One page, tried again where the apiserver is away or overloaded.
async fn page(api: &Api<Job>, params: &ListParams) -> Result<kube::core::ObjectList<Job>, ApiError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match call("list jobs", api.list(params)).await {
            Err(error) if attempt < TRIES && is_passing(&error) => {
                tracing::warn!("{error}; trying again");
                tokio::time::sleep(Duration::from_millis(500 << attempt).mul_f64(0.5 + crate::spread()))
                    .await;
            }
            other => return other,
        }
    }
}

fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::Refused { code, .. } => *code == 429 || *code >= 500,
        ApiError::Timeout { .. } | ApiError::Broken { .. } => true,
        ApiError::Rights { .. } => false,
    }
}

/// `k8s.io/apimachinery/pkg/util/validation`, IsQualifiedName.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let subdomain = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.split('.').all(|part| {
                let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let bytes = part.as_bytes();
                edge(bytes.first())
                    && edge(bytes.last())
                    && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            })
    };
    !name.is_empty() && names::is_label_value(name) && prefix.is_none_or(subdomain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys() {
        for key in ["argocd.argoproj.io/instance", "app", "A_b.c-9"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a b", "A.b/c", "a/b/c", "a=b", "a,b", "!a"] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
