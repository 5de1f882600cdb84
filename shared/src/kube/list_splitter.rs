//! Cuts the JSON of a list into its items while it arrives, so that memory holds one item at a time, whatever their number
//! and size. Pure.

use serde::{Deserialize, de::Error as _};

/// The largest item. etcd stores at most 1.5 MiB by default, and JSON takes up to six bytes for one that is stored.
const MAX_ITEM_BYTES: usize = 32 << 20;
/// What surrounds the items: kind, version, position.
const MAX_ENVELOPE_BYTES: usize = 1 << 20;
/// The capacity that the buffer keeps after a large item.
const KEPT_CAPACITY: usize = 64 << 10;
/// Depth within the array `items` of the list.
const ITEMS: usize = 2;

/// The part of a list that was read. Push the chunks, then [`finish`](Self::finish).
#[derive(Debug, Default)]
pub(crate) struct ListSplitter {
    /// The list without its items.
    envelope: Vec<u8>,
    /// The beginning of an item that the next chunk continues.
    item: Vec<u8>,
    /// Open objects and arrays.
    depth: usize,
    in_items: bool,
    in_string: bool,
    is_escaped: bool,
}

/// `metadata` of a list, or of any object.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListPosition {
    /// The moment that the list shows.
    pub(crate) resource_version: String,
    /// Continues the list; none or empty on its last page.
    #[serde(rename = "continue")]
    pub(crate) more: Option<String>,
}

/// A list without its items, or any object of which only the position matters.
#[derive(Deserialize)]
pub(crate) struct ListEnvelope {
    pub(crate) metadata: ListPosition,
}

impl ListSplitter {
    /// Reads a chunk and passes the JSON of each item that is complete to `on_item`.
    ///
    /// # Errors
    /// The first error of `on_item`, or an item that is too large.
    pub(crate) fn push(
        &mut self,
        chunk: &[u8],
        mut on_item: impl FnMut(&[u8]) -> serde_json::Result<()>,
    ) -> serde_json::Result<()> {
        // Where the bytes begin that are neither stored nor passed on.
        let mut start = 0;
        for (at, byte) in chunk.iter().copied().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'[' if self.depth == 1 => {
                    self.envelope.extend_from_slice(&chunk[start..=at]);
                    start = at + 1;
                    self.depth = ITEMS;
                    self.in_items = begins_items(&self.envelope);
                }
                b'{' | b'[' => {
                    if self.in_items && self.depth == ITEMS {
                        // Skips what separates the items.
                        start = at;
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.in_items && self.depth == ITEMS {
                        self.complete_item(&chunk[start..=at], &mut on_item)?;
                        start = at + 1;
                    } else if self.in_items && self.depth < ITEMS {
                        self.in_items = false;
                        start = at;
                    }
                }
                _ => {}
            }
        }
        self.store(&chunk[start..])
    }

    /// The position of the list.
    ///
    /// # Errors
    /// If the list is incomplete or is none.
    pub(crate) fn finish(self) -> serde_json::Result<ListPosition> {
        serde_json::from_slice::<ListEnvelope>(&self.envelope).map(|envelope| envelope.metadata)
    }

    fn complete_item(
        &mut self,
        end: &[u8],
        on_item: &mut impl FnMut(&[u8]) -> serde_json::Result<()>,
    ) -> serde_json::Result<()> {
        if self.item.is_empty() {
            return on_item(end);
        }
        self.item.extend_from_slice(end);
        on_item(&self.item)?;
        self.item.clear();
        self.item.shrink_to(KEPT_CAPACITY);
        Ok(())
    }

    fn store(&mut self, rest: &[u8]) -> serde_json::Result<()> {
        let (buffer, max) = match (self.in_items, self.depth) {
            (false, _) => (&mut self.envelope, MAX_ENVELOPE_BYTES),
            (true, ITEMS) => return Ok(()),
            (true, _) => (&mut self.item, MAX_ITEM_BYTES),
        };
        if buffer.len() + rest.len() > max {
            return Err(serde_json::Error::custom(format!("a part of the list is larger than {max} bytes")));
        }
        buffer.extend_from_slice(rest);
        Ok(())
    }
}

/// Whether the array that was just opened is the list's field `items`.
fn begins_items(envelope: &[u8]) -> bool {
    let before = envelope.strip_suffix(b"[").unwrap_or_default().trim_ascii_end();
    before.strip_suffix(b":").is_some_and(|key| key.trim_ascii_end().ends_with(br#""items""#))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The items and the position of a list that arrives in chunks of `size` bytes.
    fn split(text: &str, size: usize) -> serde_json::Result<(Vec<Value>, ListPosition)> {
        let (mut splitter, mut items) = (ListSplitter::default(), Vec::new());
        for chunk in text.as_bytes().chunks(size) {
            splitter.push(chunk, |item| {
                items.push(serde_json::from_slice(item)?);
                Ok(())
            })?;
        }
        Ok((items, splitter.finish()?))
    }

    #[test]
    fn items_and_position_are_found_wherever_the_chunks_end() {
        let odd = json!({"a": "]}\"\\", "items": [{"b": ["{"]}], "c": {"items": []}});
        let list = json!({"kind": "JobList", "aliases": [[1], {"x": []}],
            "metadata": {"resourceVersion": "7", "continue": "x]"}, "items": [odd, {}, odd]});
        let position = ListPosition { resource_version: "7".into(), more: Some("x]".into()) };
        for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap()] {
            for size in 1..text.len() {
                let (items, found) = split(&text, size).unwrap();
                assert_eq!((items, &found), (vec![odd.clone(), json!({}), odd.clone()], &position), "{size}");
            }
        }
    }

    #[test]
    fn a_list_without_items_is_empty_and_a_cut_list_is_an_error() {
        for items in ["null", "[]", "[ ]"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":{items}}}"#);
            let (found, position) = split(&text, 3).unwrap();
            assert!(found.is_empty() && position.more.is_none());
            assert!(split(&text[..text.len() - 1], 3).is_err());
        }
        assert!(split(r#"{"items":[{"metadata":{}},{"#, 4).is_err());
        assert!(split("", 4).is_err());
    }

    #[test]
    fn an_endless_item_is_an_error_before_it_fills_the_memory() {
        let mut splitter = ListSplitter::default();
        splitter.push(br#"{"items":[{"a":""#, |_| Ok(())).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        let pushed = (0..40).take_while(|_| splitter.push(&chunk, |_| Ok(())).is_ok()).count();
        assert!(pushed <= MAX_ITEM_BYTES >> 20, "{pushed} MiB");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in "[\\[\\]{}\":,\\\\a items]{0,80}", size in 1_usize..9) {
            let _: serde_json::Result<_> = split(&bytes, size);
        }

        #[test]
        fn any_items_are_found(names in prop::collection::vec(".{0,12}", 0..6), size in 1_usize..40) {
            let items: Vec<Value> = names.iter().map(|name| json!({"metadata": {"name": name}, name: [name]})).collect();
            let list = json!({"items": items, "metadata": {"resourceVersion": "1"}});
            prop_assert_eq!(split(&list.to_string(), size).unwrap().0, items);
        }
    }
}
