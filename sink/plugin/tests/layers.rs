//! Lower files never import higher ones, and files stay short.

#[path = "../../../shared/tests/house/mod.rs"]
mod house;

#[test]
fn files_import_lower_files_only() {
    // From the ground up. `test_results` serves unit tests.
    let layers: [&[&str]; 6] = [
        &["cli", "error", "terminal"],
        &["result_source"],
        &["client", "log_selector", "log_stream", "lookup"],
        &["full_logs"],
        &["completion", "list", "logs", "show"],
        &["test_results"],
    ];
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &layers);
    assert!(broken.is_empty(), "{broken:#?}");
}
