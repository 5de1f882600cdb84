//! The table of all rounds.

use std::{fmt::Write, time::Duration};

use jiff::Timestamp;
use job_handler_e2e::bench::{machine::machine, table::median};

use crate::burst::{BurstOutcome, VARIANTS};

const COLUMNS: &str = "| burst | rounds | limits | limit reached | limit exceeded | created | first M admitted after s, median (max) | within 2 s | free slot idle s, max | attempt in the ledger s, max | refused 403 | 429 | 5xx or no answer | round s, median |\n\
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";

/// As Markdown.
pub fn table(seed: u64, rounds: u64, outcomes: &[BurstOutcome], failures: &[String]) -> String {
    let date = Timestamp::now().strftime("%Y-%m-%d");
    let machine = machine().unwrap();
    let mut page = format!(
        "# Bursts against a limit\n\nWritten by `SOAK=1 SOAK_ROUNDS={rounds} cargo test -p job-handler-e2e --test limits_exact` \
         on {date}, SEED={seed}: {rounds} rounds of each burst. Do not edit.\n\n{machine}\n\n{COLUMNS}"
    );
    for variant in &VARIANTS {
        let rounds_of_variant: Vec<&BurstOutcome> =
            outcomes.iter().filter(|one| std::ptr::eq(one.variant, variant)).collect();
        if rounds_of_variant.is_empty() {
            continue;
        }
        let _ = writeln!(page, "{}", row(variant.name, &rounds_of_variant));
    }
    page.push_str(
        "\nEach round: a random limit M from 1 to 25 for one namespace; clients create 200 Jobs on 20 connections and retry \
         until each is created; three webhook replicas behind a load balancer, on the real apiserver; Jobs finish \
         meanwhile. Active Jobs are counted at every resourceVersion in etcd's history. A slot is free while fewer than \
         M Jobs are active or pending in the ledger; it is idle while no Job is admitted although clients retry. \
         Rounds run one after the other, those in which the apiserver is restarted last; those with a quota run beside \
         them, two at a time.\n",
    );
    if !failures.is_empty() {
        page.push_str("\nFailures:\n\n");
        for failure in failures {
            let _ = writeln!(page, "- {failure}");
        }
    }
    page
}

/// Puts a section into `SOAK.md`, in place of the one with the same first line, or at the end.
pub fn write_section(section: &str) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/SOAK.md");
    let page = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, with_section(&page, section)).unwrap();
}

fn with_section(page: &str, section: &str) -> String {
    let heading = |section: &str| section.lines().next().map(str::to_owned);
    let mut sections: Vec<String> = Vec::new();
    for line in page.lines() {
        if line.starts_with("# ") || sections.is_empty() {
            sections.push(String::new());
        }
        if let Some(last) = sections.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    match sections.iter_mut().find(|one| heading(one) == heading(section)) {
        Some(same) => section.clone_into(same),
        None => sections.push(section.to_owned()),
    }
    let sections: Vec<&str> = sections.iter().map(|section| section.trim_end()).collect();
    sections.join("\n\n") + "\n"
}

fn row(name: &str, rounds_of_variant: &[&BurstOutcome]) -> String {
    let limits: Vec<String> = rounds_of_variant.iter().map(|one| one.max.to_string()).collect();
    let limits = if limits.len() > 5 { "1 to 25".to_owned() } else { limits.join(", ") };
    let seconds = |durations: &dyn Fn(&BurstOutcome) -> Duration| -> Vec<f64> {
        rounds_of_variant.iter().map(|one| durations(one).as_secs_f64()).collect()
    };
    let max = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
    let filled = seconds(&|one| one.report.filled_after.unwrap_or_default());
    let refused = |codes: &dyn Fn(u16) -> bool| -> usize {
        let all = rounds_of_variant.iter().flat_map(|one| &one.errors.refused);
        all.filter(|(code, _)| codes(**code)).map(|(_, n)| n).sum()
    };
    let reached = rounds_of_variant.iter().filter(|one| one.report.max_active == one.max).count();
    let cells = [
        name.to_owned(),
        rounds_of_variant.len().to_string(),
        limits,
        format!("in {reached} rounds"),
        format!(
            "in {} rounds",
            rounds_of_variant.iter().filter(|one| one.report.max_active > one.max).count()
        ),
        rounds_of_variant.iter().map(|one| one.report.admitted.len()).sum::<usize>().to_string(),
        format!("{:.1} ({:.1})", median(filled.iter().copied()), max(&filled)),
        format!(
            "{} of {}",
            filled.iter().filter(|seconds| **seconds <= 2.0).count(),
            rounds_of_variant.len()
        ),
        format!("{:.1}", max(&seconds(&|one| one.report.longest_idle))),
        format!("{:.1}", max(&seconds(&|one| one.report.longest_attempt))),
        refused(&|code| code == 403).to_string(),
        refused(&|code| code == 429).to_string(),
        (refused(&|code| code >= 500)
            + rounds_of_variant.iter().map(|one| one.errors.unanswered).sum::<usize>())
        .to_string(),
        format!("{:.1}", median(seconds(&|one| one.took))),
    ];
    format!("| {} |", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::with_section;

    #[test]
    fn a_section_replaces_only_its_own() {
        let page = "# A\n\nold\n\n# B\n\nstays\n";
        assert_eq!(with_section(page, "# A\n\nnew\n"), "# A\n\nnew\n\n# B\n\nstays\n");
        assert_eq!(with_section(page, "# C\n"), format!("{page}\n# C\n"));
    }
}
