//! Full logs in an object store, of which the result holds only the start and the end. The plugin prints their location but
//! does not read them: users who may read results have no rights on the object store.

use std::io::{self, Write};

use job_handler_shared::{result::pods::LogFacts, text::human_bytes};

use crate::{log_selector::LogFilter, result_source::JobResult, terminal::escape_line};

/// Logs that get a note of their own.
const MAX_NOTES: usize = 10;

/// Location of the full log, if the object store has it.
pub(crate) fn location(log: &LogFacts) -> Option<String> {
    let full = log.full.as_ref()?;
    Some(format!("{} (gzipped, {})", full.url, human_bytes(full.bytes)))
}

/// Writes a note for each selected log that has a full log elsewhere.
pub(crate) fn write_notes(result: &JobResult, filter: LogFilter<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut count = 0;
    for pod in &result.manifest.pods {
        for container in &pod.containers {
            for log in &container.logs {
                let selected =
                    filter.selects_all() || filter.selects(&pod.name, &container.name, log.previous);
                let Some(location) = location(log).filter(|_| selected) else { continue };
                count += 1;
                if count > MAX_NOTES {
                    continue;
                }
                let run = if log.previous { " (previous)" } else { "" };
                let text = format!(
                    "{}/{}{run}: {} of {} bytes are not shown; the full log is at {location}, sha256 {} when unpacked",
                    pod.name, container.name, log.left_out, log.length, log.sha256
                );
                writeln!(out, "note: {}", escape_line(&text))?;
            }
        }
    }
    if let Some(objects) = result.manifest.objects.as_ref().filter(|_| count > MAX_NOTES) {
        let (more, url) = (count - MAX_NOTES, escape_line(&objects.url));
        writeln!(out, "note: … and {more} more, all below {url}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    use job_handler_shared::result::{manifest::Manifest, storage_kind::StorageKind};

    use crate::result_source::StorageObject;

    fn result_of_pods(pods: usize) -> JobResult {
        let log = |previous: bool, n: usize| {
            json!({"previous": previous, "length": 100, "leftOut": 90, "sha256": "abc",
                "whole": {"url": format!("s3://logs/ci/u/p-{n}/main-{previous}.log.gz"), "bytes": 20}})
        };
        let pods: Vec<_> = (0..pods)
            .map(|n| {
                json!({"name": format!("p-{n}"), "uid": n.to_string(), "phase": "Failed", "containers": [
                    {"name": "main", "kind": "main", "image": "i", "ready": false, "restartCount": 1,
                     "state": {"phase": "terminated"}, "logs": [log(true, n), log(false, n)]},
                    {"name": "short", "kind": "main", "image": "i", "ready": false, "restartCount": 0,
                     "state": {"phase": "terminated"}, "logs": [{"length": 1}]}]})
            })
            .collect();
        let manifest = json!({"schemaVersion": 1, "outcome": "failed", "pods": pods,
            "job": {"namespace": "ci", "name": "a", "uid": "u", "created": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:00:00Z", "succeededPods": 0, "failedPods": 1},
            "completeness": {"complete": true}, "objects": {"url": "s3://logs/ci/u/", "count": 2, "bytes": 40}});
        let object = StorageObject {
            kind: StorageKind::ConfigMap,
            namespace: "ci".into(),
            name: "a-results".into(),
            labels: BTreeMap::new(),
            data: BTreeMap::new(),
        };
        let manifest = Manifest::parse("ci", manifest.to_string().as_bytes()).unwrap();
        JobResult { object, manifest, size: 0 }
    }

    fn notes(pods: usize, filter: LogFilter<'_>) -> String {
        let mut out = Vec::new();
        write_notes(&result_of_pods(pods), filter, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn notes_are_about_selected_logs_that_are_not_shown_in_full() {
        let all = notes(1, LogFilter::default());
        assert_eq!(all.lines().count(), 2, "{all}");
        assert!(all.contains("p-0/main (previous): 90 of 100 bytes are not shown"), "{all}");
        let main = notes(2, LogFilter { container: Some("main"), pod: Some("p-1"), previous: false });
        assert_eq!(
            main,
            "note: p-1/main: 90 of 100 bytes are not shown; the full log is at s3://logs/ci/u/p-1/main-false.log.gz \
             (gzipped, 20B), sha256 abc when unpacked\n"
        );
        assert_eq!(notes(2, LogFilter { container: Some("short"), ..LogFilter::default() }), "");
        let many = notes(9, LogFilter::default());
        assert!(many.ends_with("note: … and 8 more, all below s3://logs/ci/u/\n"), "{many}");
        assert_eq!(many.lines().count(), MAX_NOTES + 1);
    }
}
