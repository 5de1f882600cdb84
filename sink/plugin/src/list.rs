//! `list`: one row per result.

use std::{cmp::Reverse, io::Write};

use jiff::Timestamp;
use job_handler_shared::{
    keys, names,
    result::{manifest::Manifest, storage_kind::StorageKind},
    text::{human_bytes, human_seconds},
};
use serde_json::{Value, json};

use crate::{
    cli::{ListArgs, ListOutput, OutcomeFilter, SortBy},
    error::PluginError,
    result_source::{JobResult, ResultSource},
    terminal::{escape_json, escape_line, escaped_yaml},
};

/// What a row needs of a result. Logs are dropped, so that many results fit in memory.
struct ResultRow {
    kind: StorageKind,
    name: String,
    manifest: Manifest,
    value: Value,
    size: u64,
}

/// # Errors
/// If a call or the output fails. A result that cannot be read is a warning.
pub(crate) async fn run(
    source: &ResultSource,
    args: &ListArgs,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), PluginError> {
    let structured = matches!(args.output, ListOutput::Json | ListOutput::Yaml);
    let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
    let mut visit = |object| match JobResult::parse(object) {
        Ok(mut result) => {
            let value = if structured { result.to_value() } else { Value::Null };
            if args.output != ListOutput::Wide {
                // Only wide output counts pods; a Job may have thousands.
                result.manifest.pods.clear();
            }
            let JobResult { object, manifest, size } = result;
            rows.push(ResultRow { kind: object.kind, name: object.name, manifest, value, size });
        }
        Err(error) => unreadable.push(error),
    };
    let skipped = source.for_each_result(&label_selector(args), &mut visit).await?;
    sort_rows(&mut rows, args.sort_by);
    match args.output {
        ListOutput::Json => {
            let items: Vec<Value> = rows.into_iter().map(|row| row.value).collect();
            let text = serde_json::to_string_pretty(&json!({"items": items})).unwrap_or_default();
            writeln!(out, "{}", escape_json(&text))?;
        }
        ListOutput::Yaml => {
            let items: Vec<Value> = rows.into_iter().map(|row| row.value).collect();
            write!(out, "{}", escaped_yaml(&json!({"items": items})))?;
        }
        ListOutput::Name => {
            for row in &rows {
                writeln!(out, "{}/{}", row.kind.resource(), row.name)?;
            }
        }
        ListOutput::Table | ListOutput::Wide => {
            if rows.is_empty() && unreadable.is_empty() {
                let scope =
                    source.namespace.as_deref().map_or(String::new(), |n| format!(" in namespace {n}"));
                let matching = if label_selector(args).is_empty() { "" } else { " matching" };
                writeln!(notes, "No{matching} results found{scope}.")?;
            } else {
                write_table(&rows, args, source.namespace.is_none(), Timestamp::now(), out)?;
            }
        }
    }
    for error in unreadable {
        writeln!(notes, "warning: {error}")?;
    }
    for (kind, message) in skipped {
        let kind = kind.kind();
        writeln!(
            notes,
            "note: results in {kind}s are not listed: {message} (--storage configmap hides this note)"
        )?;
    }
    Ok(())
}

fn label_selector(args: &ListArgs) -> String {
    let mut parts: Vec<String> = args.selector.iter().filter(|text| !text.is_empty()).cloned().collect();
    if let Some(outcome) = args.outcome {
        let status = match outcome {
            OutcomeFilter::Completed => keys::STATUS_COMPLETED,
            OutcomeFilter::Failed => keys::STATUS_FAILED,
        };
        parts.push(format!("{}={status}", keys::STATUS));
    }
    if let Some(group) = &args.group {
        parts.push(format!("{}={}", keys::GROUP, names::label_value(group)));
    }
    parts.join(",")
}

fn sort_rows(rows: &mut [ResultRow], by: SortBy) {
    rows.sort_by(|a, b| (&a.manifest.job.namespace, &a.name).cmp(&(&b.manifest.job.namespace, &b.name)));
    match by {
        SortBy::Name => {}
        SortBy::Finished => rows.sort_by_key(|row| Reverse(row.manifest.job.finished)),
        SortBy::Duration => rows.sort_by_key(|row| Reverse(row.manifest.job.duration_seconds)),
        SortBy::Size => rows.sort_by_key(|row| Reverse(row.size)),
    }
}

fn write_table(
    rows: &[ResultRow],
    args: &ListArgs,
    all_namespaces: bool,
    now: Timestamp,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let wide = args.output == ListOutput::Wide;
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !args.no_headers {
        let mut head = vec!["NAME", "OUTCOME", "REASON", "DURATION", "FINISHED", "SIZE", "LOST", "TRUNCATED"];
        if all_namespaces {
            head.insert(0, "NAMESPACE");
        }
        if wide {
            head.extend(["CAUSE", "GROUP", "PODS", "RESULT", "UID"]);
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

fn cells(row: &ResultRow, all_namespaces: bool, wide: bool, now: Timestamp) -> Vec<String> {
    let (manifest, job) = (&row.manifest, &row.manifest.job);
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { escape_line(text) };
    let mut cells = vec![
        or_dash(&job.name),
        manifest.outcome.as_str().to_owned(),
        or_dash(&manifest.reason),
        job.duration_seconds.map_or("-".to_owned(), human_seconds),
        human_seconds(now.duration_since(job.finished).as_secs()),
        human_bytes(row.size),
        manifest.completeness.lost.len().to_string(),
        manifest.completeness.truncated_count().to_string(),
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
            format!("{}/{}", row.kind.resource(), row.name),
            or_dash(names::uid8(&job.uid)),
        ]);
    }
    cells
}
