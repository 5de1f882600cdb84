//! What a run reports.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use job_handler_e2e::bench::machine::machine;

use super::{fixtures::LIMITS, load::ClientFigures, outages::OutageFigures, slot_check::SlotCheck};
use crate::soak_report::write_section;

pub struct ChaosFigures {
    pub apiservers: usize,
    pub seed: u64,
    pub took: Duration,
    pub clients: ClientFigures,
    pub outages: OutageFigures,
    pub check: SlotCheck,
}

impl ChaosFigures {
    /// What the run should have shown, and did not.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.check.described.clone();
        let more = self.check.violations.saturating_sub(failures.len());
        failures.extend((more > 0).then(|| format!("and {more} more violations")));
        failures.extend(self.outages.broken_condition());
        failures.extend(self.clients.unexpected.clone());
        let unreached = self.check.unreached();
        failures.extend(unreached.into_iter().map(|(limit, full)| {
            format!(
                "limit {limit} was full in {full} scopes only, so this run shows nothing about the others"
            )
        }));
        failures
    }

    /// Replaces the section about this number of API servers in `SOAK.md`.
    pub fn write(&self) {
        let failures = self.failures();
        let mut text = format!("{self}");
        if !failures.is_empty() {
            text.push_str("\nFailures:\n\n");
            failures.iter().for_each(|failure| {
                let _ = writeln!(text, "- {failure}");
            });
        }
        write_section(&text);
    }

    fn created(&self) -> usize {
        self.clients.done.iter().filter(|(what, _)| what.starts_with("created")).map(|(_, n)| n).sum()
    }
}

impl std::fmt::Display for ChaosFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { apiservers, seed, took, clients, outages, check } = self;
        let (seconds, date) = (took.as_secs_f64(), jiff::Timestamp::now().strftime("%Y-%m-%d"));
        let test = if *apiservers == 1 { "one_apiserver" } else { "three_apiservers" };
        writeln!(f, "# Chaos, API servers: {apiservers}\n")?;
        writeln!(
            f,
            "Written by `SOAK=1 SOAK_SECONDS={seconds:.0} cargo test -p job-handler-e2e --test limits_exact chaos::{test}` \
             on {date}, SEED={seed}. Do not edit.\n\n{}\n",
            machine().unwrap()
        )?;
        writeln!(
            f,
            "| limit | scope | max | most active | scopes that were full | writes that filled one |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: |")?;
        for limit in &LIMITS {
            let figures = check.limits.get(limit.name).cloned().unwrap_or_default();
            let (name, scope, max) = (limit.name, limit.scope, limit.max);
            let (active, scopes, full) = (figures.max_active, figures.full_scopes.len(), figures.full);
            writeln!(f, "| {name} | {scope} | {max} | {active} | {scopes} | {full} |")?;
        }
        let row =
            |f: &mut std::fmt::Formatter<'_>, what: &str, value: String| writeln!(f, "| {what} | {value} |");
        writeln!(f, "\n| figure | value |\n| --- | --- |")?;
        row(f, "writes of Jobs checked", check.revisions.to_string())?;
        row(f, "writes over a limit", check.violations.to_string())?;
        row(f, "creates per second", format!("{:.1}", self.created() as f64 / seconds))?;
        row(f, "calls that succeeded", list(&clients.done))?;
        row(f, "failed calls by code", list(&clients.refused))?;
        row(f, "calls without an answer", clients.unanswered.to_string())?;
        row(f, "how Jobs took slots", list(&check.causes))?;
        row(f, "outages", list(&outages.counts))?;
        row(f, "time with something down", format!("{:.0} %", 100.0 * outages.down.as_secs_f64() / seconds))?;
        row(f, "longest pause of an API server", format!("{:.1?}", outages.longest_apiserver_pause))
    }
}

fn list<K: std::fmt::Display>(counts: &BTreeMap<K, usize>) -> String {
    counts.iter().map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
}
