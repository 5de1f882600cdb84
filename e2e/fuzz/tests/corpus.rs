//! Replays the corpora, on any compiler. A file whose name is in the output of a failed test is the input that failed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::{collections::BTreeSet, fs, path::Path};

use job_handler_fuzz::{TARGETS, corpus};

fn replay(target: &str) {
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    for (file, bytes) in corpus(target) {
        eprintln!("corpus/{target}/{file}");
        check(&bytes);
    }
}

#[test]
fn reviews_are_answered_and_patches_are_stable() {
    replay("review");
}

#[test]
fn valid_policies_give_valid_webhook_entries() {
    replay("policy");
}

#[test]
fn logs_are_read_back_unchanged() {
    replay("logs");
}

#[test]
fn ledgers_are_rejected_or_hold_the_limit() {
    replay("ledger");
}

#[test]
fn valid_refusal_lines_arrive() {
    replay("refusal");
}

#[test]
fn printed_results_are_safe_for_terminals() {
    replay("result");
}

#[test]
fn each_target_has_a_program_and_a_corpus() {
    let names = |folder: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    for target in targets {
        assert!(corpus(&target).len() >= 5, "the corpus of {target} is too small");
    }
}
