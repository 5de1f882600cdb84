//! `show`: one result in full.

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
    sanitize::{json, line},
    source::Stored,
    verify,
};

/// Prints a result; `others` are those of the Job's other runs.
///
/// # Errors
/// Where `out` takes no more.
pub fn print(stored: &Stored, others: &[Stored], output: ShowOutput, out: &mut impl Write) -> io::Result<()> {
    match output {
        ShowOutput::Text => text(stored, others, out),
        ShowOutput::Json => {
            let text = serde_json::to_string_pretty(&stored.to_value()).unwrap_or_default();
            writeln!(out, "{}", json(&text))
        }
        ShowOutput::Yaml => {
            write!(out, "{}", serde_norway::to_string(&stored.to_value()).unwrap_or_default())
        }
    }
}

fn text(stored: &Stored, others: &[Stored], out: &mut impl Write) -> io::Result<()> {
    let (manifest, job) = (&stored.manifest, &stored.manifest.job);
    let mut field = |name: &str, value: String| -> io::Result<()> {
        if value.is_empty() { Ok(()) } else { writeln!(out, "{:<12}{}", format!("{name}:"), line(&value)) }
    };
    field("Job", job.name.clone())?;
    field("Namespace", job.namespace.clone())?;
    field("UID", job.uid.clone())?;
    field("Group", job.group.clone().unwrap_or_default())?;
    let word = match manifest.outcome {
        Outcome::Completed => "Completed",
        Outcome::Failed => "Failed",
    };
    let cause = serde_json::to_value(manifest.cause).unwrap_or_default();
    let cause = cause.as_str().map_or(String::new(), |cause| format!(", cause: {cause}"));
    let reason = if manifest.reason.is_empty() { String::new() } else { format!(" ({})", manifest.reason) };
    field("Outcome", format!("{word}{reason}{cause}"))?;
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
        field("Whole logs", format!("{} {logs}, {bytes} gzipped, below {}", objects.count, objects.url))?;
    }
    field("Complete", if manifest.completeness.complete { "yes" } else { "no" }.to_owned())?;
    for lost in &manifest.completeness.lost {
        field("  lost", lost.clone())?;
    }
    field("To be told", manifest.announcements_pending.join(", "))?;
    field("Stored in", format!("{}, {}", stored.object.place(), human_bytes(stored.size)))?;
    for other in others {
        let uid = names::uid8(&other.manifest.job.uid);
        let ended = other.manifest.outcome.as_str();
        let when = other.manifest.job.finished;
        field("Other run", format!("{ended} at {when}: --run {uid}"))?;
    }
    for pod in &manifest.pods {
        pod_text(pod, out)?;
    }
    if manifest.pods_not_listed > 0 {
        writeln!(out, "\n… and {} more pods, for which there was no room", manifest.pods_not_listed)?;
    }
    Ok(())
}

fn pod_text(pod: &PodFacts, out: &mut impl Write) -> io::Result<()> {
    let mut told = vec![pod.phase.clone()];
    told.extend(pod.reason.clone());
    told.extend(pod.disruption.clone());
    told.extend(pod.node.as_ref().map(|node| format!("on {node}")));
    writeln!(out, "\nPod {}: {}", line(&pod.name), line(&told.join(", ")))?;
    for (name, text) in [("message", &pod.message), ("unschedulable", &pod.unschedulable)] {
        if let Some(text) = text {
            writeln!(out, "  {name}: {}", line(text))?;
        }
    }
    for container in &pod.containers {
        container_text(container, out)?;
    }
    Ok(())
}

fn container_text(container: &ContainerFacts, out: &mut impl Write) -> io::Result<()> {
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
    writeln!(out, "  {}{kind}: {state}{restarts}; image {}", line(&container.name), line(&container.image))?;
    if let Some(last) = &container.last_state {
        writeln!(out, "    before the last restart: {}", state_text(last))?;
    }
    for log in &container.logs {
        writeln!(out, "    {}", log_text(log))?;
    }
    Ok(())
}

fn state_text(state: &StateFacts) -> String {
    let mut told = vec![state.phase.clone()];
    told.extend(state.reason.clone());
    told.extend(state.exit_code.map(|code| format!("exit code {code}")));
    told.extend(state.signal.filter(|signal| *signal != 0).map(|signal| format!("signal {signal}")));
    if let Some((start, end)) = state.started.zip(state.finished) {
        told.push(format!("after {}", human_seconds(end.duration_since(start).as_secs())));
    }
    let message = state.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
    line(&format!("{}{message}", told.join(", ")))
}

fn log_text(log: &LogFacts) -> String {
    let run = if log.previous { "previous log" } else { "log" };
    let left_out = match log.left_out {
        0 => String::new(),
        bytes => format!(", {} of them left out", human_bytes(bytes)),
    };
    let whole = verify::place(log).map_or(String::new(), |place| format!(", all of it: {place}"));
    let lost = log.lost.as_ref().map_or(String::new(), |why| format!(", lost: {why}"));
    line(&format!("{run}: {}{left_out}{whole}{lost}", human_bytes(log.length)))
}
