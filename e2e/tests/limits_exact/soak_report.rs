//! The table of all rounds.

use std::{fmt::Write, time::Duration};

use jiff::Timestamp;
use job_handler_e2e::bench::{machine::machine, table::median};

use crate::burst::{Outcome, VARIANTS};

const COLUMNS: &str = "| burst | rounds | limits | at most active, of the limit | limit exceeded | created | first M within s, median (most) | within 2 s | slot free, wanted and idle s, most | attempt in the ledger s, most | refused 403 | 429 | 5xx or no answer | round s, median |\n\
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";

/// As Markdown.
pub fn table(seed: u64, rounds: u64, outcomes: &[Outcome], wrong: &[String]) -> String {
    let date = Timestamp::now().strftime("%Y-%m-%d");
    let machine = machine().unwrap();
    let mut page = format!(
        "# Bursts against a limit\n\nWritten by `SOAK=1 SOAK_ROUNDS={rounds} cargo test -p job-handler-e2e --test limits_exact` \
         on {date}, SEED={seed}: {rounds} rounds of each burst. Do not edit.\n\n{machine}\n\n{COLUMNS}"
    );
    for variant in &VARIANTS {
        let of: Vec<&Outcome> = outcomes.iter().filter(|one| std::ptr::eq(one.variant, variant)).collect();
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(page, "{}", row(variant.name, &of));
    }
    page.push_str(
        "\nEach round: a limit M, drawn from 1 to 25, over one namespace; 200 Jobs wanted by clients on 20 connections, which \
         try again until each is created; three webhook replicas behind a balancer, on the real apiserver; Jobs finish \
         all the while. «Active» is counted at every resourceVersion in etcd's own history. A slot is free where fewer than \
         M Jobs are active or pending in the ledger; it is idle where nobody is admitted although Jobs are wanted. \
         Rounds come one after the other; those with a quota go on beside them, two at a time, and those in which the \
         apiserver is restarted on a second cluster.\n",
    );
    if !wrong.is_empty() {
        page.push_str("\nNot as it has to be:\n\n");
        for wrong in wrong {
            let _ = writeln!(page, "- {wrong}");
        }
    }
    page
}

fn row(name: &str, of: &[&Outcome]) -> String {
    let limits: Vec<String> = of.iter().map(|one| one.max.to_string()).collect();
    let limits = if limits.len() > 5 { "1 to 25".to_owned() } else { limits.join(", ") };
    let seconds = |durations: &dyn Fn(&Outcome) -> Duration| -> Vec<f64> {
        of.iter().map(|one| durations(one).as_secs_f64()).collect()
    };
    let most = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
    let filled = seconds(&|one| one.report.filled_after.unwrap_or_default());
    let refused = |codes: &dyn Fn(u16) -> bool| -> usize {
        let all = of.iter().flat_map(|one| &one.counts.refused);
        all.filter(|(code, _)| codes(**code)).map(|(_, n)| n).sum()
    };
    let full = of.iter().filter(|one| one.report.most == one.max).count();
    let cells = [
        name.to_owned(),
        of.len().to_string(),
        limits,
        format!("all of it in {full} rounds"),
        format!("{} times", of.iter().filter(|one| one.report.most > one.max).count()),
        of.iter().map(|one| one.report.admitted.len()).sum::<usize>().to_string(),
        format!("{:.1} ({:.1})", median(filled.iter().copied()), most(&filled)),
        format!("{} of {}", filled.iter().filter(|seconds| **seconds <= 2.0).count(), of.len()),
        format!("{:.1}", most(&seconds(&|one| one.report.longest_idle))),
        format!("{:.1}", most(&seconds(&|one| one.report.longest_attempt))),
        refused(&|code| code == 403).to_string(),
        refused(&|code| code == 429).to_string(),
        (refused(&|code| code >= 500) + of.iter().map(|one| one.counts.lost).sum::<usize>()).to_string(),
        format!("{:.1}", median(seconds(&|one| one.took))),
    ];
    format!("| {} |", cells.join(" | "))
}
