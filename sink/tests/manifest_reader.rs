//! Each program reads manifests in one place, which takes their namespace from the object's metadata: no other path leads
//! from what tenants can write to where an effect lands.

#[path = "../../shared/tests/house/mod.rs"]
mod house;

use std::{collections::BTreeSet, path::Path};

#[test]
fn there_is_one_reader_of_manifests() {
    let sink = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (plugin, shared) = (sink.join("plugin"), sink.join("../shared"));
    let (plugin, shared) = (plugin.as_path(), shared.as_path());
    let readers = |root: &Path| house::files_with(root, &["Manifest::parse("]);
    assert_eq!(readers(sink), BTreeSet::from(["result/lookup.rs".to_owned()]));
    assert_eq!(readers(plugin), BTreeSet::from(["result_source.rs".to_owned()]));
    for root in [sink, plugin, shared] {
        // It is not `Deserialize`; this is the function behind `parse`.
        let others = house::files_with(root, &["Manifest::deserialize(", "\"Manifest\"", "<JobFacts>("]);
        assert_eq!(others, BTreeSet::new(), "{}", root.display());
    }
}
