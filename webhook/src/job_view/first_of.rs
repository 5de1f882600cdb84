//! Lists and maps of which only the first elements are read. In memory, small elements take ten times the space that they
//! take in JSON, and a Job may have hundreds of thousands of them before Kubernetes validates it.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The first `MAX` elements of a list; the others are skipped.
pub(super) struct FirstOf<T, const MAX: usize>(pub(super) Vec<T>);

/// The first `MAX` entries of a map; the others are skipped.
pub(super) struct FirstEntries<T, const MAX: usize>(pub(super) BTreeMap<String, T>);

impl<T, const MAX: usize> Default for FirstOf<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for FirstOf<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FirstVisitor::<Self>(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for FirstEntries<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FirstVisitor::<Self>(PhantomData))
    }
}

struct FirstVisitor<V>(PhantomData<V>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for FirstVisitor<FirstOf<T, MAX>> {
    type Value = FirstOf<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < MAX {
            let Some(element) = list.next_element()? else { return Ok(FirstOf(first)) };
            first.push(element);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FirstOf(first))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for FirstVisitor<FirstEntries<T, MAX>> {
    type Value = FirstEntries<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut first = BTreeMap::new();
        while first.len() < MAX {
            let Some((key, value)) = map.next_entry()? else { return Ok(FirstEntries(first)) };
            first.insert(key, value);
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(FirstEntries(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_elements_are_read_and_the_others_skipped() {
        for (json, expected) in
            [("[]", vec![]), ("[1, 2]", vec![1, 2]), (r#"[1, 2, 3, {"a": [4]}]"#, vec![1, 2, 3])]
        {
            assert_eq!(serde_json::from_str::<FirstOf<u8, 3>>(json).unwrap().0, expected);
        }
        let entries: FirstEntries<u8, 1> = serde_json::from_str(r#"{"a": 1, "b": "two"}"#).unwrap();
        assert_eq!(entries.0, BTreeMap::from([("a".to_owned(), 1)]));
        assert!(serde_json::from_str::<FirstOf<u8, 3>>(r#"["a"]"#).is_err());
    }
}
