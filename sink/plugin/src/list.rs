//! `list`: a row per result.

use std::{cmp::Reverse, io::Write};

use jiff::Timestamp;
use job_handler_shared::{
    keys, names,
    text::{human_bytes, human_seconds},
};
use serde_json::{Value, json};

use crate::{
    ReadError,
    cli::{Ending, ListArgs, ListOutput, SortBy},
    sanitize::{json as escaped_json, line},
    source::{Source, StorageKind, Stored},
};

/// What is kept of a result while all are listed: its logs are not.
struct Row {
    kind: StorageKind,
    name: String,
    manifest: job_handler_shared::result::manifest::Manifest,
    value: Value,
    size: u64,
}

/// Lists results as asked.
///
/// # Errors
/// Where they cannot be listed, or written.
pub async fn run(
    source: &Source,
    args: &ListArgs,
    out: &mut impl Write,
    remarks: &mut impl Write,
) -> Result<(), ReadError> {
    let structured = matches!(args.output, ListOutput::Json | ListOutput::Yaml);
    let (mut rows, mut broken) = (Vec::new(), Vec::new());
    let mut each = |object| match Stored::read(object) {
        Ok(mut stored) => {
            let value = if structured { stored.to_value() } else { Value::Null };
            let wide = args.output == ListOutput::Wide;
            if !wide {
                // Not the facts of thousands of pods at a time.
                stored.manifest.pods.clear();
            }
            let Stored { object, manifest, size } = stored;
            rows.push(Row { kind: object.kind, name: object.name, manifest, value, size });
        }
        Err(error) => broken.push(error),
    };
    let hidden = source.each(&selector(args), &mut each).await?;
    sort(&mut rows, args.sort_by);
    match args.output {
        ListOutput::Json => {
            let items: Vec<Value> = rows.into_iter().map(|row| row.value).collect();
            let text = serde_json::to_string_pretty(&json!({"items": items})).unwrap_or_default();
            writeln!(out, "{}", escaped_json(&text))?;
        }
        ListOutput::Yaml => {
            let items: Vec<Value> = rows.into_iter().map(|row| row.value).collect();
            write!(out, "{}", serde_norway::to_string(&json!({"items": items})).unwrap_or_default())?;
        }
        ListOutput::Name => {
            for row in &rows {
                writeln!(out, "{}/{}", row.kind.resource(), row.name)?;
            }
        }
        ListOutput::Table | ListOutput::Wide => {
            if rows.is_empty() && broken.is_empty() {
                let wide =
                    source.namespace.as_deref().map_or(String::new(), |n| format!(" in namespace {n}"));
                let picked = if selector(args).is_empty() { "" } else { " like that" };
                writeln!(remarks, "No results{picked} found{wide}.")?;
            } else {
                table(&rows, args, source.namespace.is_none(), Timestamp::now(), out)?;
            }
        }
    }
    for error in broken {
        writeln!(remarks, "warning: {error}")?;
    }
    for (kind, why) in hidden {
        let word = kind.resource();
        writeln!(
            remarks,
            "note: results in {word}s, if any, are not shown: {why} (--storage configmap asks for none)"
        )?;
    }
    Ok(())
}

/// The label selector of what was asked for.
fn selector(args: &ListArgs) -> String {
    let mut parts: Vec<String> = args.selector.iter().filter(|text| !text.is_empty()).cloned().collect();
    if let Some(ending) = args.outcome {
        let status = match ending {
            Ending::Completed => keys::STATUS_COMPLETED,
            Ending::Failed => keys::STATUS_FAILED,
        };
        parts.push(format!("{}={status}", keys::STATUS));
    }
    if let Some(group) = &args.group {
        parts.push(format!("{}={}", keys::GROUP, names::label_value(group)));
    }
    parts.join(",")
}

fn sort(rows: &mut [Row], by: SortBy) {
    rows.sort_by(|a, b| (&a.manifest.job.namespace, &a.name).cmp(&(&b.manifest.job.namespace, &b.name)));
    match by {
        SortBy::Name => {}
        SortBy::Finished => rows.sort_by_key(|row| Reverse(row.manifest.job.finished)),
        SortBy::Duration => rows.sort_by_key(|row| Reverse(row.manifest.job.duration_seconds)),
        SortBy::Size => rows.sort_by_key(|row| Reverse(row.size)),
    }
}

fn table(
    rows: &[Row],
    args: &ListArgs,
    all_namespaces: bool,
    now: Timestamp,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let wide = args.output == ListOutput::Wide;
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !args.no_headers {
        let mut head = vec!["NAME", "OUTCOME", "REASON", "DURATION", "FINISHED", "SIZE"];
        if all_namespaces {
            head.insert(0, "NAMESPACE");
        }
        if wide {
            head.extend(["CAUSE", "GROUP", "PODS", "COMPLETE", "RESULT", "UID"]);
        }
        lines.push(head.into_iter().map(str::to_owned).collect());
    }
    for row in rows {
        lines.push(cells(row, all_namespaces, wide, now));
    }
    let columns = lines.first().map_or(0, Vec::len);
    let width = |n: usize| lines.iter().map(|cells| cells[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for cells in &lines {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}   "));
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

fn cells(row: &Row, all_namespaces: bool, wide: bool, now: Timestamp) -> Vec<String> {
    let (manifest, job) = (&row.manifest, &row.manifest.job);
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { line(text) };
    let mut cells = vec![
        or_dash(&job.name),
        manifest.outcome.as_str().to_owned(),
        or_dash(&manifest.reason),
        job.duration_seconds.map_or("-".to_owned(), human_seconds),
        human_seconds(now.duration_since(job.finished).as_secs()),
        human_bytes(row.size),
    ];
    if all_namespaces {
        cells.insert(0, or_dash(&job.namespace));
    }
    if wide {
        let cause = serde_json::to_value(manifest.cause).unwrap_or_default();
        cells.extend([
            or_dash(cause.as_str().unwrap_or_default()),
            or_dash(job.group.as_deref().unwrap_or_default()),
            (manifest.pods.len() + manifest.pods_not_listed).to_string(),
            if manifest.completeness.complete { "yes" } else { "no" }.to_owned(),
            format!("{}/{}", row.kind.resource(), row.name),
            or_dash(names::uid8(&job.uid)),
        ]);
    }
    cells
}
