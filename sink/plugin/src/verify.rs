//! Tells where the whole of a log is of which a result holds only the ends. What is in an object store is not read here:
//! that takes rights which readers of results do not have.

use std::io::{self, Write};

use job_handler_shared::{result::pods::LogFacts, text::human_bytes};

use crate::{sanitize::line, select::Wanted, source::Stored};

/// Most logs that are told of one by one.
const MOST: usize = 10;

/// Where all of a log is, if it is anywhere.
pub fn place(log: &LogFacts) -> Option<String> {
    let whole = log.full.as_ref()?;
    Some(format!("{} (gzipped, {})", whole.url, human_bytes(whole.bytes)))
}

/// Remarks on the logs that were asked for and are not shown in full.
///
/// # Errors
/// Where `out` takes no more.
pub fn remark(stored: &Stored, wanted: Wanted<'_>, out: &mut impl Write) -> io::Result<()> {
    let anything = wanted.container.is_none() && wanted.pod.is_none() && !wanted.previous;
    let mut found = 0;
    for pod in &stored.manifest.pods {
        for container in &pod.containers {
            for log in &container.logs {
                let asked = wanted.pod.is_none_or(|name| name == pod.name)
                    && wanted.container.is_none_or(|name| name == container.name)
                    && (anything || wanted.previous == log.previous);
                let Some(place) = place(log).filter(|_| asked) else { continue };
                found += 1;
                if found > MOST {
                    continue;
                }
                let run = if log.previous { " (previous)" } else { "" };
                let text = format!(
                    "{}/{}{run}: {} of {} bytes are not shown; all of it is at {place}, sha256 {} unpacked",
                    pod.name, container.name, log.left_out, log.length, log.sha256
                );
                writeln!(out, "note: {}", line(&text))?;
            }
        }
    }
    if let Some(objects) = stored.manifest.objects.as_ref().filter(|_| found > MOST) {
        writeln!(out, "note: … and {} more, all of them below {}", found - MOST, line(&objects.url))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    use crate::source::{Object, StorageKind};

    fn stored(pods: usize) -> Stored {
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
        let object = Object {
            kind: StorageKind::ConfigMap,
            namespace: "ci".into(),
            name: "a-results".into(),
            labels: BTreeMap::new(),
            data: BTreeMap::new(),
        };
        Stored { object, manifest: serde_json::from_value(manifest).unwrap(), size: 0 }
    }

    fn remarks(pods: usize, wanted: Wanted<'_>) -> String {
        let mut out = Vec::new();
        remark(&stored(pods), wanted, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_what_was_asked_for_and_is_not_shown_is_told_of() {
        let all = remarks(1, Wanted::default());
        assert_eq!(all.lines().count(), 2, "{all}");
        assert!(all.contains("p-0/main (previous): 90 of 100 bytes are not shown"), "{all}");
        let main = remarks(2, Wanted { container: Some("main"), pod: Some("p-1"), previous: false });
        assert_eq!(
            main,
            "note: p-1/main: 90 of 100 bytes are not shown; all of it is at s3://logs/ci/u/p-1/main-false.log.gz \
             (gzipped, 20B), sha256 abc unpacked\n"
        );
        assert_eq!(remarks(2, Wanted { container: Some("short"), ..Wanted::default() }), "");
        let many = remarks(9, Wanted::default());
        assert!(many.ends_with("note: … and 8 more, all of them below s3://logs/ci/u/\n"), "{many}");
        assert_eq!(many.lines().count(), MOST + 1);
    }
}
