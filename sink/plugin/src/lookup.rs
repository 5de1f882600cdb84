//! Finds the result of a Job by name. Several Jobs may have had the name, one after another.

use std::io::Write;

use job_handler_shared::{keys, names, result::storage_kind::StorageKind};

use crate::{
    error::PluginError,
    result_source::{JobResult, ResultSource, StorageObject},
    terminal::escape_line,
};

/// Job names that the error lists if the given one has no result.
const MAX_SUGGESTIONS: usize = 10;

/// Returns the newest result of the Job, or the result of the run whose uid starts with `run`, and the results of its
/// other runs, newest first.
///
/// # Errors
/// If there is no such result: the message lists what exists.
pub(crate) async fn find_result(
    source: &ResultSource,
    job: &str,
    run: Option<&str>,
    notes: &mut impl Write,
) -> Result<(JobResult, Vec<JobResult>), PluginError> {
    let name = job.rsplit_once('/').map_or(job, |(_, name)| name);
    let namespace = source.namespace.clone().unwrap_or_default();
    let (mut results, mut unreadable) = (Vec::new(), Vec::new());
    let mut visit = |object| match JobResult::parse(object) {
        Ok(result) if result.manifest.job.name == name => results.push(result),
        Ok(_) => {}
        Err(error) => unreadable.push(error),
    };
    let selector = format!("{}={}", keys::JOB_NAME, names::label_value(name));
    let skipped = match source.for_each_result(&selector, &mut visit).await {
        Ok(skipped) => skipped,
        // A role with `get` but without `list` can still read the result under its usual name.
        Err(forbidden @ PluginError::Forbidden { .. }) => {
            match get_by_object_name(source, &namespace, &names::result_name(name)).await {
                Ok(Some(result)) => results.push(result),
                Ok(None) | Err(PluginError::Forbidden { .. }) => return Err(forbidden),
                Err(other) => return Err(other),
            }
            Vec::new()
        }
        Err(other) => return Err(other),
    };
    if results.is_empty()
        && let Some(result) = get_by_object_name(source, &namespace, name).await?
    {
        results.push(result);
    }
    results.sort_by(|a, b| age_key(b).cmp(&age_key(a)));
    for error in &unreadable {
        writeln!(notes, "warning: {error}")?;
    }
    if results.is_empty() {
        if let Some(error) = unreadable.pop() {
            return Err(error);
        }
        return Err(not_found(source, &namespace, name, &skipped).await?);
    }
    let index = match run {
        None => 0,
        Some(uid) => run_index(&results, uid, &namespace, name)?,
    };
    let result = results.remove(index);
    if run.is_none() {
        note_hidden_newer_run(&result, &results, name, &skipped, notes)?;
    }
    if result.has_newer_schema() {
        let (version, place) = (result.manifest.schema_version, result.object.display_name());
        writeln!(
            notes,
            "warning: {place} has schema version {version}; a newer {} may show more of it",
            crate::PROGRAM
        )?;
    }
    Ok((result, results))
}

fn run_index(results: &[JobResult], uid: &str, namespace: &str, name: &str) -> Result<usize, PluginError> {
    results.iter().position(|result| result.manifest.job.uid.starts_with(uid)).ok_or_else(|| {
        let uids: Vec<_> = results.iter().map(|result| result.manifest.job.uid.as_str()).collect();
        PluginError::NotFound(format!(
            "Job {namespace}/{name} has no result of a run whose uid starts with `{uid}`; it has results of {}",
            uids.join(", ")
        ))
    })
}

/// The newest run has the result's plain name. If the shown result has another name and none has the plain one, a newer
/// result is in an object of a kind that was skipped.
fn note_hidden_newer_run(
    shown: &JobResult,
    others: &[JobResult],
    job: &str,
    skipped: &[(StorageKind, String)],
    notes: &mut impl Write,
) -> std::io::Result<()> {
    let plain_name = names::result_name(job);
    if std::iter::once(shown).chain(others).any(|result| result.object.name == plain_name) {
        return Ok(());
    }
    for (kind, message) in skipped {
        writeln!(
            notes,
            "note: a newer run of Job {job} may have its result in a {}: {message}",
            kind.kind()
        )?;
    }
    Ok(())
}

/// Newer runs have greater keys.
fn age_key(result: &JobResult) -> (jiff::Timestamp, jiff::Timestamp, &str) {
    let job = &result.manifest.job;
    (job.created, job.finished, &job.uid)
}

async fn get_by_object_name(
    source: &ResultSource,
    namespace: &str,
    name: &str,
) -> Result<Option<JobResult>, PluginError> {
    for kind in source.kinds() {
        let object = match source.get(kind, namespace, name).await {
            Err(PluginError::Forbidden { .. }) if source.may_skip(kind) => None,
            other => other?,
        };
        if let Some(object) = object.filter(StorageObject::is_result) {
            return JobResult::parse(object).map(Some);
        }
    }
    Ok(None)
}

/// The error for a Job without a result: lists the Jobs with the most similar names.
async fn not_found(
    source: &ResultSource,
    namespace: &str,
    name: &str,
    skipped: &[(StorageKind, String)],
) -> Result<PluginError, PluginError> {
    let mut jobs = Vec::new();
    source
        .for_each_result("", &mut |object| {
            if let Ok(result) = JobResult::parse(object) {
                jobs.push((result.manifest.job.finished, result.manifest.job.name));
            }
        })
        .await?;
    jobs.sort_by_key(|job| std::cmp::Reverse((common_prefix(&job.1, name), job.0)));
    let mut suggestions: Vec<String> = Vec::new();
    for (_, job) in &jobs {
        let job = escape_line(job);
        if !suggestions.contains(&job) && suggestions.len() < MAX_SUGGESTIONS {
            suggestions.push(job);
        }
    }
    let mut text = format!("no result of Job {name} in namespace {namespace}");
    match suggestions.as_slice() {
        [] => text.push_str(
            "; the namespace has no results (has the Job finished? does a policy with `results` select it?)",
        ),
        names => {
            let names = names.join(", ");
            text.push_str(&format!("; the namespace has {} results, of Jobs {names}", jobs.len()));
        }
    }
    if suggestions.len() == MAX_SUGGESTIONS {
        text.push_str(", …");
    }
    for (kind, message) in skipped {
        text.push_str(&format!("\n(results in {}s could not be read: {message})", kind.kind()));
    }
    Ok(PluginError::NotFound(text))
}

/// Length of the common prefix, bytes.
fn common_prefix(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
