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
    let error = if results.is_empty() { unreadable.pop() } else { None };
    for error in &unreadable {
        writeln!(notes, "warning: {error}")?;
    }
    if let Some(error) = error {
        return Err(error);
    }
    if results.is_empty() {
        return Err(not_found(source, &namespace, name, &skipped).await?);
    }
    let index = match run {
        None => 0,
        Some(uid) => run_index(&results, uid, &namespace, name)?,
    };
    let result = results.remove(index);
    // An object name means this result, whether or not there are newer ones.
    if run.is_none() && result.manifest.job.name == name {
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
        if suggestions.len() <= MAX_SUGGESTIONS && !suggestions.contains(&job) {
            suggestions.push(job);
        }
    }
    let has_more = suggestions.len() > MAX_SUGGESTIONS;
    suggestions.truncate(MAX_SUGGESTIONS);
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
    if has_more {
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

#[cfg(test)]
mod tests {
    use job_handler_shared::testing::apiserver::Apiserver;
    use serde_json::json;

    use super::*;
    use crate::test_results::{manifest, put_object, put_result, refuse_get, source};

    /// The uids of the found run and of the other ones, or the error; and the notes.
    async fn find(
        apiserver: &Apiserver,
        job: &str,
        run: Option<&str>,
    ) -> (Result<(String, Vec<String>), String>, String) {
        let mut notes = Vec::new();
        let found = find_result(&source(apiserver), job, run, &mut notes).await;
        let uid = |result: &JobResult| result.manifest.job.uid.clone();
        let found = found
            .map(|(result, others)| (uid(&result), others.iter().map(uid).collect()))
            .map_err(|error| error.to_string());
        (found, String::from_utf8(notes).unwrap())
    }

    fn put(apiserver: &Apiserver, object: &str, job: &str, uid: &str, minute: u8) {
        put_result(apiserver, StorageKind::ConfigMap, object, &manifest(job, uid, minute));
    }

    fn found(uid: &str, others: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((uid.to_owned(), others.iter().map(|uid| (*uid).to_owned()).collect()))
    }

    #[tokio::test]
    async fn a_name_means_the_newest_run_of_exactly_this_job() {
        let apiserver = Apiserver::default();
        put(&apiserver, "build-results", "build", "b2", 3);
        put(&apiserver, "build-results-c1", "build", "c1", 2);
        put(&apiserver, "build-2-results", "build-2", "d1", 5);
        // The oldest run finished last.
        let mut oldest = manifest("build", "b1", 1);
        oldest["job"]["finished"] = "2026-01-01T00:09:00Z".into();
        put_result(&apiserver, StorageKind::ConfigMap, "build-results-b1", &oldest);
        let (result, notes) = find(&apiserver, "build", None).await;
        assert_eq!((result, notes.as_str()), (found("b2", &["c1", "b1"]), ""));
        assert_eq!(find(&apiserver, "build", Some("b1")).await.0, found("b1", &["b2", "c1"]));
        assert_eq!(find(&apiserver, "build", Some("b")).await.0, found("b2", &["c1", "b1"]), "newest of two");
        let error =
            "Job ci/build has no result of a run whose uid starts with `d`; it has results of b2, c1, b1";
        assert_eq!(find(&apiserver, "build", Some("d")).await.0, Err(error.to_owned()));
    }

    #[tokio::test]
    async fn an_argument_is_the_name_of_a_job_before_it_is_the_name_of_an_object() {
        let apiserver = Apiserver::default();
        put(&apiserver, "build-results", "build", "b", 1);
        for argument in ["build", "job/build", "jobs.batch/build", "build-results", "cm/build-results"] {
            assert_eq!(find(&apiserver, argument, None).await.0, found("b", &[]), "{argument}");
        }
        put(&apiserver, "build-results-results", "build-results", "r", 1);
        assert_eq!(find(&apiserver, "build-results", None).await.0, found("r", &[]));
        put_object(&apiserver, StorageKind::ConfigMap, "settings", &[], "result.json", b"{}");
        let error = find(&apiserver, "settings", None).await.0.unwrap_err();
        assert!(
            error.starts_with("no result of Job settings in namespace ci; the namespace has 2"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_unknown_job_lists_the_jobs_with_the_most_similar_names() {
        let apiserver = Apiserver::default();
        let error = find(&apiserver, "build-9", None).await.0.unwrap_err();
        assert!(error.contains("no result of Job build-9 in namespace ci; the namespace has no results"));
        put(&apiserver, "build-results", "build", "b2", 9);
        put(&apiserver, "build-results-b1", "build", "b1", 8);
        put(&apiserver, "build-8-results", "build-8", "8", 1);
        put(&apiserver, "other-results", "other", "o", 3);
        put(&apiserver, "later-results", "later", "l", 4);
        let error = "no result of Job build-9 in namespace ci; the namespace has 5 results, of Jobs build-8, build, \
                     later, other";
        assert_eq!(find(&apiserver, "build-9", None).await.0, Err(error.to_owned()));
    }

    #[tokio::test]
    async fn only_jobs_that_are_not_listed_are_hinted_at() {
        let apiserver = Apiserver::default();
        for n in 0..MAX_SUGGESTIONS {
            put(&apiserver, &format!("job-{n}-results"), &format!("job-{n}"), &n.to_string(), 1);
        }
        let all = find(&apiserver, "build", None).await.0.unwrap_err();
        assert!(all.contains("has 10 results, of Jobs job-") && !all.contains('…'), "{all}");
        put(&apiserver, "job-x-results", "job-x", "x", 0);
        let some = find(&apiserver, "build", None).await.0.unwrap_err();
        assert!(some.ends_with(", …") && some.matches("job-").count() == MAX_SUGGESTIONS, "{some}");
        assert!(!some.contains("job-x"), "the oldest: {some}");
    }

    #[tokio::test]
    async fn without_the_right_to_list_a_result_is_found_under_its_usual_name() {
        let apiserver = Apiserver::default();
        put(&apiserver, "build-results", "build", "b", 1);
        refuse_get(&apiserver, "/configmaps", 403);
        assert_eq!(find(&apiserver, "build", None).await.0, found("b", &[]));
        for refused_calls in [1, 2] {
            (0..refused_calls).for_each(|_| refuse_get(&apiserver, "/configmaps", 403));
            let error = find(&apiserver, "other", None).await.0.unwrap_err();
            assert!(error.starts_with("no right to list configmaps in namespace ci"), "{error}");
        }
    }

    #[tokio::test]
    async fn secrets_that_may_not_be_read_are_mentioned_where_they_may_matter() {
        let apiserver = Apiserver::default();
        put(&apiserver, "build-results-b1", "build", "b1", 1);
        put_result(&apiserver, StorageKind::Secret, "build-results", &manifest("build", "b2", 2));
        assert_eq!(find(&apiserver, "build", None).await, (found("b2", &["b1"]), String::new()));
        refuse_get(&apiserver, "/secrets", 403);
        let (result, notes) = find(&apiserver, "build", None).await;
        assert_eq!(result, found("b1", &[]));
        assert!(
            notes.starts_with("note: a newer run of Job build may have its result in a Secret"),
            "{notes}"
        );
        refuse_get(&apiserver, "/secrets", 403);
        assert_eq!(find(&apiserver, "build", Some("b1")).await.1, "", "this run was asked for");
        put(&apiserver, "test-results", "test", "t", 1);
        refuse_get(&apiserver, "/secrets", 403);
        assert_eq!(find(&apiserver, "test", None).await, (found("t", &[]), String::new()), "the newest run");
        for object in ["test-results", "build-results-b1"] {
            refuse_get(&apiserver, "/secrets", 403);
            assert_eq!(find(&apiserver, object, None).await.1, "", "this object was asked for");
        }
        refuse_get(&apiserver, "/secrets", 403);
        let error = find(&apiserver, "unknown", None).await.0.unwrap_err();
        assert!(error.contains("\n(results in Secrets could not be read: "), "{error}");
    }

    #[tokio::test]
    async fn an_unreadable_result_is_reported_once() {
        let apiserver = Apiserver::default();
        let unreadable = "the `result.json` of ConfigMap ci/build-results cannot be read";
        put_result(&apiserver, StorageKind::ConfigMap, "build-results", &json!({"job": 7}));
        let (error, notes) = find(&apiserver, "build", None).await;
        assert!(error.unwrap_err().starts_with(unreadable));
        assert_eq!(notes, "");
        put(&apiserver, "build-results-b1", "build", "b1", 1);
        let (result, notes) = find(&apiserver, "build", None).await;
        assert_eq!(result, found("b1", &[]));
        assert!(notes.starts_with(&format!("warning: {unreadable}")), "{notes}");
    }

    #[tokio::test]
    async fn a_result_with_a_newer_schema_is_returned_with_a_warning() {
        let apiserver = Apiserver::default();
        let mut newer = manifest("build", "b", 1);
        newer["schemaVersion"] = 99.into();
        put_result(&apiserver, StorageKind::ConfigMap, "build-results", &newer);
        let (result, notes) = find(&apiserver, "build", None).await;
        assert_eq!(result, found("b", &[]));
        assert!(notes.starts_with("warning: ConfigMap ci/build-results has schema version 99"), "{notes}");
    }
}
