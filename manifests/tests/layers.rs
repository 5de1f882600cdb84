//! Lower files never import higher ones, and files stay short.

#[path = "../../shared/tests/house/mod.rs"]
mod house;

#[test]
fn files_import_lower_files_only() {
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &[&["policy_reference"]]);
    assert!(broken.is_empty(), "{broken:#?}");
}
