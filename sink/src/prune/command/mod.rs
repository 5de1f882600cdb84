//! The one-shot cleaner: deletes all finished Jobs but the newest of each (namespace, label value), page by page,
//! remembering what stays of each group. The decisions are those of [`crate::prune::keep`], as in the running sink.

mod delete;
mod pages;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    io::{self, Write},
};

use futures::StreamExt;
use job_handler_shared::{
    job::{
        group::{NoGroup, group_label_value},
        snapshot::JobSnapshot,
    },
    keys, names,
    policy::cleanup::Keep,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc};

use self::{
    delete::{Deed, awaits_harvest},
    pages::Pages,
};
use crate::{
    jobs::patch,
    prune::keep::{self, Keepers, Ranked},
};
use job_handler_shared::kube::error::ApiError;

/// Deletions, or looks at Jobs that stay, at a time.
const AT_A_TIME: usize = 8;
/// Jobs that are to go are gathered over so many pages' worth, so that most groups' keepers have to be fetched only once;
/// each takes about 1 KiB of memory.
const PAGES: usize = 20;
/// So many pages are listed while Jobs are deleted, each of which takes about 1 KiB of memory per Job.
const AHEAD: usize = 10;

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
    /// How many of each group stay; the newest always does.
    pub keep: Keep,
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
    /// Groups of which a Job that was to stay has gone meanwhile, so that nothing of them was deleted any more.
    pub vanished: usize,
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
        for namespace in options.namespaces.iter().collect::<BTreeSet<_>>() {
            run.list(&Api::namespaced(client.clone(), namespace)).await?;
        }
    }
    run.keepers()?;
    let report = &run.report;
    let dry = if options.dry_run == DryRun::None { "" } else { " (dry run: nothing was deleted)" };
    let vanished = match report.vanished {
        0 => String::new(),
        n => format!(", {n} groups changed meanwhile: run again"),
    };
    writeln!(
        run.out,
        "Found {} (namespace, group) pairs: {} purged, {} skipped, {} failed{vanished}{dry}",
        report.groups, report.purged, report.skipped, report.failed
    )?;
    Ok(run.report)
}

/// A group: namespace and label value.
type Key = (String, String);

/// What is remembered of a Job: nothing that can be long.
#[derive(Clone, Debug)]
struct Candidate {
    job: JobSnapshot,
    /// Why its result may still have to be stored.
    awaits: Option<&'static str>,
    /// It has been seen to be there by a GET.
    fetched: bool,
}

impl From<JobSnapshot> for Candidate {
    fn from(mut job: JobSnapshot) -> Self {
        let awaits = awaits_harvest(&job);
        (job.labels, job.annotations, job.owner) = Default::default();
        if let Some(finished) = &mut job.finished {
            (finished.reason, finished.message) = Default::default();
        }
        Self { job, awaits, fetched: false }
    }
}

/// What is remembered of a group: the Jobs that stay.
struct Group {
    keepers: Keepers,
    kept: BTreeMap<String, Candidate>,
    /// One of those that stay is gone, and which: nothing of the group is deleted until a newer one is there.
    vanished: Option<String>,
    /// A keeper could not be fetched, and why.
    unknown: Option<String>,
}

struct Run<'a, W> {
    client: Client,
    options: &'a Options,
    out: &'a mut W,
    report: Report,
    groups: HashMap<Key, Group>,
}

impl<W: Write> Run<'_, W> {
    async fn list(&mut self, api: &Api<Job>) -> Result<(), CleanError> {
        let (sender, pages) = mpsc::channel(AHEAD);
        let mut list = Pages::new(api, &self.options.group_label, self.options.page);
        let listing = async move {
            while let Some(page) = list.next().await.transpose() {
                let last = page.is_err();
                if sender.send(page).await.is_err() || last {
                    return;
                }
            }
        };
        let ((), pruned) = futures::future::join(Box::pin(listing), Box::pin(self.pages(pages))).await;
        pruned
    }

    async fn pages(
        &mut self,
        mut pages: mpsc::Receiver<Result<Vec<JobSnapshot>, ApiError>>,
    ) -> Result<(), CleanError> {
        let (mut doomed, mut listed) = (Vec::new(), Ok(()));
        while let Some(page) = pages.recv().await {
            match page {
                Ok(jobs) => jobs.into_iter().try_for_each(|job| self.offer(job, &mut doomed))?,
                // What was decided by the pages before stays right.
                Err(error) => listed = Err(error),
            }
            if doomed.len() >= PAGES * self.options.page as usize {
                self.purge(std::mem::take(&mut doomed)).await?;
            }
        }
        self.purge(doomed).await?;
        Ok(listed?)
    }

    /// Takes a Job into account; those that do not stay because of it are doomed.
    fn offer(&mut self, job: JobSnapshot, doomed: &mut Vec<(Key, Candidate)>) -> Result<(), CleanError> {
        let all = self.options.namespaces.is_empty();
        if all && keys::EXCLUDED_NAMESPACES.contains(&job.namespace.as_str()) {
            return Ok(());
        }
        let value = match group_label_value(&job.labels, &self.options.group_label) {
            Ok(value) => value.to_owned(),
            Err(NoGroup::MissingLabel(_)) => return Ok(()),
            Err(none) => return self.skip(&job, "", &none),
        };
        if job.deleting_since.is_some() {
            return self.skip(&job, &value, &keep::Spared::Deleting);
        }
        let key = (job.namespace.clone(), value);
        let keep = self.options.keep;
        let group = self.groups.entry(key.clone()).or_insert_with(|| {
            self.report.groups += 1;
            Group { keepers: Keepers::new(keep), kept: BTreeMap::new(), vanished: None, unknown: None }
        });
        let ranked = Ranked::from(&job);
        let out = group.keepers.offer(ranked.clone());
        group.kept.insert(job.uid.clone(), Candidate::from(job));
        if group.keepers.newest() == Some(&ranked) {
            // It stands for the group from now on.
            (group.vanished, group.unknown) = (None, None);
        }
        doomed
            .extend(out.iter().filter_map(|ranked| group.kept.remove(&ranked.uid)).map(|c| (key.clone(), c)));
        Ok(())
    }

    /// Deletes Jobs, a few at a time; their lines come in the order given.
    async fn purge(&mut self, doomed: Vec<(Key, Candidate)>) -> Result<(), CleanError> {
        let mut going = Vec::new();
        let mut keys = BTreeSet::new();
        for (key, candidate) in doomed {
            let why = delete::spared(&candidate, self.options);
            if why.is_none() {
                keys.insert(key.clone());
            }
            going.push((key, candidate, why));
        }
        self.look_at_keepers(keys).await;
        // Taken, as lines are written to what is ours while deletions go on.
        let groups = std::mem::take(&mut self.groups);
        let (client, options) = (self.client.clone(), self.options);
        let turns = Semaphore::new(AT_A_TIME);
        let mut deeds = futures::stream::iter(going)
            .map(|(key, candidate, why)| {
                let group = groups.get(&key);
                let gone = group.and_then(|group| group.vanished.clone());
                let unknown = group.and_then(|group| group.unknown.clone());
                let (client, turns) = (client.clone(), &turns);
                async move {
                    // Never closed, so that an error cannot be.
                    let _turn = turns.acquire().await;
                    let job = candidate.job.clone();
                    let deed = match (why, gone, unknown) {
                        (Some(why), ..) => Deed::Spared(why),
                        (_, Some(gone), _) => Deed::Spared(format!(
                            "the newest of its group, {gone}, is gone meanwhile: run again"
                        )),
                        (.., Some(why)) => Deed::Failed(why),
                        _ => delete::delete(&client, options, candidate, &key.1).await,
                    };
                    (key.1, job, deed)
                }
            })
            // Lines come in order; meanwhile others go on behind a deletion that is slow.
            .buffered(4 * AT_A_TIME);
        while let Some((value, job, deed)) = deeds.next().await {
            self.tell(&value, &job, deed)?;
        }
        drop(deeds);
        self.groups = groups;
        Ok(())
    }

    /// Sees with its own eyes that what stays of these groups is there.
    async fn look_at_keepers(&mut self, keys: BTreeSet<Key>) {
        let mut looks = Vec::new();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key).filter(|group| group.vanished.is_none()) else {
                continue;
            };
            group.unknown = None;
            let unseen = group.kept.values().filter(|keeper| !keeper.fetched);
            let unseen: Vec<_> = unseen.map(|keeper| keeper.job.clone()).collect();
            if !unseen.is_empty() {
                looks.push(look_at(self.client.clone(), key, unseen));
            }
        }
        let looks: Vec<_> = futures::stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
        for (key, seen) in looks {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            match seen {
                Ok(()) => group.kept.values_mut().for_each(|keeper| keeper.fetched = true),
                Err(Unseen::Gone(name)) => {
                    let (namespace, value) = &key;
                    tracing::warn!(
                        "group {value} of namespace {namespace} has changed: {name}, which was to stay, is gone; \
                         nothing of it is deleted, run again"
                    );
                    self.report.vanished += 1;
                    group.vanished = Some(name);
                }
                Err(Unseen::Unknown(why)) => group.unknown = Some(why),
            }
        }
    }

    fn tell(&mut self, value: &str, job: &JobSnapshot, deed: Deed) -> Result<(), CleanError> {
        match deed {
            Deed::Purged(remark) => {
                self.report.purged += 1;
                let dry = match self.options.dry_run {
                    DryRun::None => "",
                    DryRun::Client => " (dry run)",
                    DryRun::Server => " (server dry run)",
                };
                self.line("PURGE", job, value, &format_args!("SUCCESS{remark}{dry}"))
            }
            Deed::Spared(why) => self.skip(job, value, &why),
            Deed::Failed(why) => {
                self.report.failed += 1;
                self.line("PURGE", job, value, &format_args!("FAILED: {why}"))
            }
        }
    }

    /// Lines for those that stay, at the end: only then is it known.
    fn keepers(&mut self) -> Result<(), CleanError> {
        let mut groups: Vec<_> = std::mem::take(&mut self.groups).into_iter().collect();
        groups.sort_by(|a, b| a.0.cmp(&b.0));
        let Keep { newest, newest_succeeded } = self.options.keep;
        for ((_, value), mut group) in groups {
            let mut kept: Vec<_> = group.keepers.iter().cloned().collect();
            kept.sort_by(|a, b| b.cmp(a));
            for ranked in kept {
                let Some(Candidate { job, .. }) = group.kept.remove(&ranked.uid) else { continue };
                let mut why = if group.keepers.newest() == Some(&ranked) {
                    "the newest of its group".to_owned()
                } else if group.keepers.is_newest(&ranked) {
                    format!("one of the {newest} newest of its group")
                } else {
                    format!("one of the {newest_succeeded} newest of its group that completed")
                };
                if group.vanished.as_ref() == Some(&job.name) {
                    why.push_str("; gone meanwhile");
                }
                self.skip(&job, &value, &why)?;
            }
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

/// Why a Job that stays was not seen to be there.
enum Unseen {
    /// It is gone, or going.
    Gone(String),
    /// Nobody said.
    Unknown(String),
}

async fn look_at(client: Client, key: Key, keepers: Vec<JobSnapshot>) -> (Key, Result<(), Unseen>) {
    for keeper in keepers {
        let unseen = match patch::look(&client, &keeper).await {
            Ok(Some(there)) if there.deleting_since.is_none() => continue,
            Ok(_) => Unseen::Gone(keeper.name),
            Err(error) => Unseen::Unknown(error.to_string()),
        };
        return (key, Err(unseen));
    }
    (key, Ok(()))
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
