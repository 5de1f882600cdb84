//! Sections and keys of a result's logs.

/// The heading of a section.
pub fn heading(pod: &str, container: &str, previous: bool) -> String {
    let run = if previous { " (previous)" } else { "" };
    format!("=== Pod: {pod} / Container: {container}{run} ===\n")
}

/// Key of plain logs: in `data`, or in `binaryData` if they are not UTF-8.
pub const LOGS: &str = "logs";

/// Key of gzipped logs in `binaryData`, of all or of a shard.
pub const LOGS_GZ: &str = "logs.gz";
