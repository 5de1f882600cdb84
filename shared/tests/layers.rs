//! Lower rooms never import higher ones, and files stay short.

mod house;

#[test]
fn rooms_import_lower_rooms_only() {
    // From the ground up.
    let layers: [&[&str]; 8] = [
        &["keys", "text"],
        &["names"],
        &["process", "webhook_address"],
        &["kube"],
        &["policy"],
        &["job"],
        &["ledger", "result"],
        &["testing"],
    ];
    let broken = house::broken_rules(env!("CARGO_MANIFEST_DIR"), &layers);
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn imports_are_found_in_use_trees_and_in_paths() {
    let text = "use crate::{\n    job::{group, x::{y}},\n    keys,\n};\nuse crate::names;\n// use crate::ledger;\n\
        pub(crate) fn f() { crate::policy::g::<$crate::no::T>() }";
    let found: Vec<String> = house::imported_rooms(text).into_iter().collect();
    assert_eq!(found, ["job", "keys", "names", "policy"]);
}

#[test]
fn a_type_name_has_one_meaning_in_the_workspace() {
    let ambiguous =
        house::ambiguous_type_names(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")));
    assert!(ambiguous.is_empty(), "{ambiguous:#?}");
}
