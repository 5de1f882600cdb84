//! Lower rooms never import higher ones, and files stay short.

#[path = "../../../shared/tests/house/mod.rs"]
mod house;

#[test]
fn rooms_import_lower_rooms_only() {
    // From the ground up.
    let layers: [&[&str]; 3] = [
        &["entry_rules", "harness"],
        &["plugin"],
        &["ledger", "logs", "policy", "refusal", "result", "review"],
    ];
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &layers);
    assert!(broken.is_empty(), "{broken:#?}");
}
