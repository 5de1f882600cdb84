//! Finds the result of a Job by name, among several runs of it.

use std::io::Write;

use job_handler_shared::{keys, names};

use crate::{
    ReadError,
    sanitize::line,
    source::{Source, StorageKind, Stored},
};

/// So many names are told where the one asked for is not there.
const NAMES_TOLD: usize = 10;

/// A Job's result: the newest, or that of the run whose uid begins so. The second part are its other runs', newest
/// first.
///
/// # Errors
/// Where there is none: tells what there is.
pub async fn result_of(
    source: &Source,
    asked: &str,
    run: Option<&str>,
    remarks: &mut impl Write,
) -> Result<(Stored, Vec<Stored>), ReadError> {
    let name = asked.rsplit_once('/').map_or(asked, |(_, name)| name);
    let namespace = source.namespace.clone().unwrap_or_default();
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    let mut take = |object| match Stored::read(object) {
        Ok(stored) if stored.manifest.job.name == name => found.push(stored),
        Ok(_) => {}
        Err(error) => broken.push(error),
    };
    let labels = format!("{}={}", keys::JOB_NAME, names::label_value(name));
    let hidden = match source.each(&labels, &mut take).await {
        Ok(hidden) => hidden,
        // Who may only `get` finds the one under its own name.
        Err(rights @ ReadError::Rights { .. }) => {
            match by_object_name(source, &namespace, &names::result_name(name)).await {
                Ok(Some(stored)) => found.push(stored),
                Ok(None) | Err(ReadError::Rights { .. }) => return Err(rights),
                Err(other) => return Err(other),
            }
            Vec::new()
        }
        Err(other) => return Err(other),
    };
    if found.is_empty()
        && let Some(stored) = by_object_name(source, &namespace, name).await?
    {
        found.push(stored);
    }
    found.sort_by(|a, b| newness(b).cmp(&newness(a)));
    for error in &broken {
        writeln!(remarks, "warning: {error}")?;
    }
    if found.is_empty() {
        if let Some(error) = broken.pop() {
            return Err(error);
        }
        return Err(none_of(source, &namespace, name, &hidden).await?);
    }
    let index = match run {
        None => 0,
        Some(run) => match found.iter().position(|stored| stored.manifest.job.uid.starts_with(run)) {
            Some(index) => index,
            None => {
                let runs: Vec<_> = found.iter().map(|stored| stored.manifest.job.uid.as_str()).collect();
                let runs = runs.join(", ");
                return Err(ReadError::NotFound(format!(
                    "no run of Job {namespace}/{name} whose uid begins with `{run}` has a result; there are {runs}"
                )));
            }
        },
    };
    let stored = found.remove(index);
    // Another run, a newer one, has the name: if it is not among those that were found, it is where one may not look.
    let first = names::result_name(name);
    let moved = run.is_none() && stored.object.name != first;
    if moved && !found.iter().any(|other| other.object.name == first) {
        for (kind, why) in &hidden {
            writeln!(
                remarks,
                "note: there may be a newer run of Job {name}, whose result is in a {}: {why}",
                kind.kind()
            )?;
        }
    }
    if stored.is_newer_than_we() {
        let (theirs, place) = (stored.manifest.schema_version, stored.object.place());
        writeln!(
            remarks,
            "warning: {place} has schema version {theirs}: a newer {} shows more",
            crate::PROGRAM
        )?;
    }
    Ok((stored, found))
}

/// Later runs first.
fn newness(stored: &Stored) -> (jiff::Timestamp, jiff::Timestamp, &str) {
    let job = &stored.manifest.job;
    (job.created, job.finished, &job.uid)
}

/// A result by the name of the object that holds it.
async fn by_object_name(source: &Source, namespace: &str, name: &str) -> Result<Option<Stored>, ReadError> {
    for kind in &source.kinds {
        let found = match source.get(*kind, namespace, name).await {
            Err(ReadError::Rights { .. }) if *kind == StorageKind::Secret && !source.asked => None,
            other => other?,
        };
        match found {
            Some(object) if object.labels.get(keys::CREATED).is_some_and(|value| value == "true") => {
                return Stored::read(object).map(Some);
            }
            _ => {}
        }
    }
    Ok(None)
}

/// What is said where there is no result of that name.
async fn none_of(
    source: &Source,
    namespace: &str,
    name: &str,
    hidden: &[(StorageKind, String)],
) -> Result<ReadError, ReadError> {
    let mut jobs = Vec::new();
    source
        .each("", &mut |object| {
            if let Ok(stored) = Stored::read(object) {
                jobs.push((stored.manifest.job.finished, stored.manifest.job.name));
            }
        })
        .await?;
    jobs.sort_by_key(|job| std::cmp::Reverse((likeness(&job.1, name), job.0)));
    let mut told: Vec<String> = Vec::new();
    for (_, job) in &jobs {
        let job = line(job);
        if !told.contains(&job) && told.len() < NAMES_TOLD {
            told.push(job);
        }
    }
    let mut text = format!("no result of a Job {name} in namespace {namespace}");
    match told.as_slice() {
        [] => text.push_str(
            "; there are no results in it (has the Job finished? does a policy with `results` select it?)",
        ),
        names => text.push_str(&format!("; there are {} results in it, of {}", jobs.len(), names.join(", "))),
    }
    if told.len() == NAMES_TOLD {
        text.push_str(", …");
    }
    for (kind, why) in hidden {
        text.push_str(&format!("\n(results in {}s could not be looked at: {why})", kind.kind()));
    }
    Ok(ReadError::NotFound(text))
}

/// Characters that two names have in common from their start.
fn likeness(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
