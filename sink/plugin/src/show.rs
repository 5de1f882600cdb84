//! `show`: one result, as text, JSON or YAML.

use std::io::{self, Write};

use job_handler_shared::{
    job::snapshot::Outcome,
    names,
    result::{
        manifest::Encoding,
        pods::{ContainerFacts, ContainerKind, LogFacts, PodFacts, StateFacts},
    },
    text::{human_bytes, human_seconds},
};

use crate::{
    cli::ShowOutput,
    full_logs,
    result_source::JobResult,
    terminal::{escape_json, escape_line, escaped_yaml},
};

pub(crate) fn print(
    result: &JobResult,
    other_runs: &[JobResult],
    output: ShowOutput,
    out: &mut impl Write,
) -> io::Result<()> {
    match output {
        ShowOutput::Text => write_text(result, other_runs, out),
        ShowOutput::Json => {
            let text = serde_json::to_string_pretty(&result.to_value()).unwrap_or_default();
            writeln!(out, "{}", escape_json(&text))
        }
        ShowOutput::Yaml => write!(out, "{}", escaped_yaml(&result.to_value())),
    }
}

fn write_text(result: &JobResult, other_runs: &[JobResult], out: &mut impl Write) -> io::Result<()> {
    let (manifest, job) = (&result.manifest, &result.manifest.job);
    let mut field = |name: &str, value: String| -> io::Result<()> {
        if value.is_empty() {
            Ok(())
        } else {
            writeln!(out, "{:<12}{}", format!("{name}:"), escape_line(&value))
        }
    };
    field("Job", job.name.clone())?;
    field("Namespace", job.namespace.clone())?;
    field("UID", job.uid.clone())?;
    field("Group", job.group.clone().unwrap_or_default())?;
    let outcome = match manifest.outcome {
        Outcome::Completed => "Completed",
        Outcome::Failed => "Failed",
    };
    let cause = serde_json::to_value(manifest.cause).unwrap_or_default();
    let cause = cause.as_str().map_or(String::new(), |cause| format!(", cause: {cause}"));
    let reason = if manifest.reason.is_empty() { String::new() } else { format!(" ({})", manifest.reason) };
    field("Outcome", format!("{outcome}{reason}{cause}"))?;
    field("Why", manifest.decisive.clone())?;
    field("Message", manifest.message.clone())?;
    field("Created", job.created.to_string())?;
    field("Started", job.started.map(|time| time.to_string()).unwrap_or_default())?;
    let after = job.duration_seconds.map_or(String::new(), |s| format!(" (after {})", human_seconds(s)));
    field("Finished", format!("{}{after}", job.finished))?;
    field("Pods", format!("{} succeeded, {} failed", job.succeeded_pods, job.failed_pods))?;
    let logs = match &manifest.logs {
        None => "none stored".to_owned(),
        Some(place) => {
            let packed = if place.encoding == Encoding::Gzip { ", gzipped" } else { "" };
            let shards = match place.shards.len() {
                0 => String::new(),
                1 => ", in 1 shard".to_owned(),
                n => format!(", in {n} shards"),
            };
            format!(
                "{}{packed}{shards}; `kubectl job-results logs {}`",
                human_bytes(place.bytes as u64),
                job.name
            )
        }
    };
    field("Logs", logs)?;
    if let Some(objects) = &manifest.objects {
        let logs = if objects.count == 1 { "log" } else { "logs" };
        let bytes = human_bytes(objects.bytes);
        field("Full logs", format!("{} {logs}, {bytes} gzipped, below {}", objects.count, objects.url))?;
    }
    field("Complete", if manifest.completeness.complete { "yes" } else { "no" }.to_owned())?;
    for part in &manifest.completeness.lost {
        field("  missing", part.clone())?;
    }
    for part in &manifest.completeness.truncated {
        field("  truncated", part.clone())?;
    }
    field("Pending", manifest.announcements_pending.join(", "))?;
    field("Stored in", format!("{}, {}", result.object.display_name(), human_bytes(result.size)))?;
    for other in other_runs {
        let uid = names::uid8(&other.manifest.job.uid);
        let outcome = other.manifest.outcome.as_str();
        let finished = other.manifest.job.finished;
        field("Other run", format!("{outcome} at {finished}: --run {uid}"))?;
    }
    for pod in &manifest.pods {
        write_pod(pod, out)?;
    }
    if manifest.pods_not_listed > 0 {
        writeln!(
            out,
            "\n… and {} more pods, not listed because the result would be too large",
            manifest.pods_not_listed
        )?;
    }
    Ok(())
}

fn write_pod(pod: &PodFacts, out: &mut impl Write) -> io::Result<()> {
    let mut parts = vec![pod.phase.clone()];
    parts.extend(pod.reason.clone());
    parts.extend(pod.disruption.clone());
    parts.extend(pod.node.as_ref().map(|node| format!("on {node}")));
    writeln!(out, "\nPod {}: {}", escape_line(&pod.name), escape_line(&parts.join(", ")))?;
    for (name, text) in [("message", &pod.message), ("unschedulable", &pod.unschedulable)] {
        if let Some(text) = text {
            writeln!(out, "  {name}: {}", escape_line(text))?;
        }
    }
    for container in &pod.containers {
        write_container(container, out)?;
    }
    Ok(())
}

fn write_container(container: &ContainerFacts, out: &mut impl Write) -> io::Result<()> {
    let kind = match container.kind {
        ContainerKind::Main => "",
        ContainerKind::Init => " (init)",
        ContainerKind::Sidecar => " (sidecar)",
        ContainerKind::Ephemeral => " (ephemeral)",
    };
    let restarts = match container.restart_count {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        n => format!(", {n} restarts"),
    };
    let state = state_text(&container.state);
    writeln!(
        out,
        "  {}{kind}: {state}{restarts}; image {}",
        escape_line(&container.name),
        escape_line(&container.image)
    )?;
    if let Some(last) = &container.last_state {
        writeln!(out, "    before the last restart: {}", state_text(last))?;
    }
    for log in &container.logs {
        writeln!(out, "    {}", log_text(log))?;
    }
    Ok(())
}

fn state_text(state: &StateFacts) -> String {
    let mut parts = vec![state.phase.clone()];
    parts.extend(state.reason.clone());
    parts.extend(state.exit_code.map(|code| format!("exit code {code}")));
    parts.extend(state.signal.filter(|signal| *signal != 0).map(|signal| format!("signal {signal}")));
    if let Some((start, end)) = state.started.zip(state.finished) {
        parts.push(format!("after {}", human_seconds(end.duration_since(start).as_secs())));
    }
    let message = state.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
    escape_line(&format!("{}{message}", parts.join(", ")))
}

fn log_text(log: &LogFacts) -> String {
    let run = if log.previous { "previous log" } else { "log" };
    let left_out = match log.left_out {
        0 => String::new(),
        bytes => format!(", {} left out", human_bytes(bytes)),
    };
    let full = full_logs::location(log).map_or(String::new(), |location| format!(", full log: {location}"));
    let missing = log.lost.as_ref().map_or(String::new(), |reason| format!(", missing: {reason}"));
    let missing =
        if log.truncated && log.left_out == 0 { ", over the log budget".to_owned() } else { missing };
    escape_line(&format!("{run}: {}{left_out}{full}{missing}", human_bytes(log.length)))
}
