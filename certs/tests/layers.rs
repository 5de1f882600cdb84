//! Lower files never import higher ones, and files stay short.

#[path = "../../shared/tests/house/mod.rs"]
mod house;

#[test]
fn rooms_import_lower_rooms_only() {
    // From the ground up. `args` and `commands` belong to the program, the others to the library.
    let layers: [&[&str]; 7] = [
        &["client_auth", "review_path"],
        &["ca", "path_rotation"],
        &["leaf", "publish", "secret"],
        &["serve", "source"],
        &["run"],
        &["args"],
        &["commands"],
    ];
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &layers);
    assert!(broken.is_empty(), "{broken:#?}");
}
