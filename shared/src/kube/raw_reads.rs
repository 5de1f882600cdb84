//! Lists and watches whose objects are handed over one by one as JSON, so that memory follows what the caller keeps of
//! each, and never a page of what tenants wrote.
//!
//! kube's own calls read the full response into memory and then all its objects: 500 Jobs of a page can take a gigabyte.

use std::{io, pin::pin};

use futures::{AsyncBufReadExt, Stream, StreamExt};
use http::Request;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    kube::list_splitter::{ListPosition, ListSplitter},
    process::error_chain::error_chain,
};

/// What a page should take at most, for the apiserver's sake. The first page of a list is as long as allowed.
const PAGE_BYTES: usize = 8 << 20;
/// Objects per page.
const PAGE_LENGTH: std::ops::RangeInclusive<usize> = 10..=500;

/// An event of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct RawWatchEvent {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) object: Box<RawValue>,
}

/// Lists the objects at `path`, such as `/apis/batch/v1/jobs`, and passes the JSON of each to `on_item`. Returns the
/// resourceVersion of the list, 0 if that is not a number.
///
/// The request names no `resourceVersion`, which makes the list consistent: it shows every write before it began
/// (KEP-2340). Further pages are of the same moment.
///
/// # Errors
/// If the apiserver refuses or does not answer, if the continue token has expired (410), or if `on_item` fails.
pub async fn list(
    client: &Client,
    path: &str,
    mut on_item: impl FnMut(&[u8]) -> serde_json::Result<()>,
) -> kube::Result<u64> {
    let mut length = *PAGE_LENGTH.end();
    let mut more: Option<String> = None;
    loop {
        let token = more.map(|token| format!("&continue={}", escape(&token))).unwrap_or_default();
        let page = read_page(client, format!("{path}?limit={length}{token}"), &mut on_item).await?;
        length = page.next_length();
        more = page.position.more.filter(|token| !token.is_empty());
        if more.is_none() {
            return Ok(page.position.resource_version.parse().unwrap_or(0));
        }
    }
}

/// Watches the objects at `path` after the resourceVersion `from`, for `seconds`, with bookmarks.
///
/// # Errors
/// If the apiserver refuses or does not answer. An item is an error if the connection fails or a line is no event.
pub(crate) async fn watch(
    client: &Client,
    path: &str,
    from: u64,
    seconds: u64,
) -> kube::Result<impl Stream<Item = kube::Result<RawWatchEvent>> + Send + use<>> {
    let query =
        format!("watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}");
    let lines = client.request_stream(get(format!("{path}?{query}"))?).await?.lines();
    Ok(lines.map(|line| serde_json::from_str(&line.map_err(Error::ReadEvents)?).map_err(Error::SerdeError)))
}

/// Whether the error means that the stream was cut off, which ends a watch like its timeout does.
pub(crate) fn is_cut_off(error: &Error) -> bool {
    match error {
        Error::ReadEvents(error) if error.kind() == io::ErrorKind::UnexpectedEof => true,
        // Of hyper («unexpected EOF during chunk size line») and of rustls, each within further errors.
        Error::ReadEvents(error) => {
            let text = error_chain(error);
            text.contains("unexpected EOF") || text.contains("close_notify")
        }
        Error::SerdeError(error) => error.is_eof(),
        _ => false,
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

struct ListPage {
    position: ListPosition,
    items: usize,
    bytes: usize,
}

impl ListPage {
    /// How many objects the next page should have, if they are as large as those of this one.
    fn next_length(&self) -> usize {
        let fitting = PAGE_BYTES.saturating_mul(self.items.max(1)) / self.bytes.max(1);
        fitting.clamp(*PAGE_LENGTH.start(), *PAGE_LENGTH.end())
    }
}

async fn read_page(
    client: &Client,
    uri: String,
    on_item: &mut impl FnMut(&[u8]) -> serde_json::Result<()>,
) -> kube::Result<ListPage> {
    let mut body = pin!(client.request_stream(get(uri)?).await?);
    let mut splitter = ListSplitter::default();
    let (mut items, mut bytes) = (0, 0);
    loop {
        let chunk = body.fill_buf().await.map_err(Error::ReadEvents)?;
        let read = chunk.len();
        if read == 0 {
            break;
        }
        let pushed = splitter.push(chunk, |item| {
            items += 1;
            on_item(item)
        });
        pushed.map_err(Error::SerdeError)?;
        body.consume_unpin(read);
        bytes += read;
    }
    Ok(ListPage { position: splitter.finish().map_err(Error::SerdeError)?, items, bytes })
}

fn get(uri: String) -> kube::Result<Request<Vec<u8>>> {
    Request::get(uri).body(Vec::new()).map_err(Error::HttpError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_shrink_with_the_size_of_their_objects() {
        let length =
            |items, bytes| ListPage { position: ListPosition::default(), items, bytes }.next_length();
        assert_eq!(length(500, 500 * 4_000), 500);
        assert_eq!(length(500, 500 * 110_000), 76);
        assert_eq!(length(100, 100 * 1_350_000), 10);
        assert_eq!(length(0, 100), 500);
    }

    #[test]
    fn continue_tokens_are_escaped() {
        assert_eq!(escape("a/b=+~"), "a%2Fb%3D%2B~");
    }
}
