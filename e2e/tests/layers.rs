//! Lower rooms never import higher ones, and files stay short.

#[path = "../../shared/tests/house/mod.rs"]
mod house;

#[test]
fn rooms_import_lower_rooms_only() {
    // From the ground up. Nothing imports the benchmarks.
    let layers: [&[&str]; 7] = [
        &["harness"],
        &["build"],
        &["net", "real_node"],
        &["cluster"],
        &["etcd_history", "pair"],
        &["demo"],
        &["bench"],
    ];
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &layers);
    assert!(broken.is_empty(), "{broken:#?}");
}
