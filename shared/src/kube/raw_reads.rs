//! Lists and watches whose objects are handed over one by one as JSON, so that memory follows what the caller keeps of
//! each, and never a page of what tenants wrote; and single objects, few at a time.
//!
//! kube's own calls read the full response into memory and then all its objects: 500 Jobs of a page can take a gigabyte.

use std::{
    io,
    pin::{Pin, pin},
};

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, Stream, StreamExt};
use http::{Request, header::ACCEPT};
use kube::{Api, Client, Error, Resource};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::{
    kube::list_splitter::{ListEnvelope, ListPosition, ListSplitter},
    process::error_chain::error_chain,
};

/// What a page should take at most, for the apiserver's sake. The first page of a list is as long as allowed.
const PAGE_BYTES: usize = 8 << 20;
/// Objects per page.
const PAGE_LENGTH: std::ops::RangeInclusive<usize> = 10..=500;

/// The objects to list or watch.
#[derive(Clone, Debug)]
pub struct ReadTarget {
    path: String,
    /// Parameters, each with a leading `&`.
    selectors: String,
    metadata_only: bool,
}

/// An event of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct RawWatchEvent {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) object: Box<RawValue>,
}

/// A list that is being read, chunk by chunk.
pub(crate) struct ListReader {
    client: Client,
    target: ReadTarget,
    /// Of the next page.
    length: usize,
    more: Option<String>,
    page: Option<PageReader>,
}

struct PageReader {
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    splitter: ListSplitter,
    items: usize,
    bytes: usize,
}

impl RawWatchEvent {
    /// The resourceVersion of the object.
    pub(crate) fn version(&self) -> serde_json::Result<String> {
        let object = serde_json::from_str::<ListEnvelope>(self.object.get())?;
        Ok(object.metadata.resource_version)
    }
}

impl ReadTarget {
    /// The objects at a path, such as `/apis/batch/v1/jobs`.
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: path.into(), selectors: String::new(), metadata_only: false }
    }

    /// The objects of an `Api`; only their metadata for an `Api<PartialObjectMeta<K>>`.
    pub fn of<K: Resource>(api: &Api<K>) -> Self {
        Self { metadata_only: K::metadata_api(), ..Self::path(api.resource_url()) }
    }

    /// Of these objects, those that a selector selects: `labelSelector` or `fieldSelector`.
    #[must_use]
    pub fn select(mut self, parameter: &str, selector: Option<&str>) -> Self {
        if let Some(selector) = selector {
            self.selectors += &format!("&{parameter}={}", escape(selector));
        }
        self
    }

    /// A GET with these parameters. `kind` is what a metadata-only response consists of.
    fn get(&self, parameters: &str, kind: &str) -> kube::Result<Request<Vec<u8>>> {
        let mut request = Request::get(format!("{}?{parameters}{}", self.path, self.selectors));
        if self.metadata_only {
            request = request.header(ACCEPT, format!("application/json;as={kind};g=meta.k8s.io;v=v1"));
        }
        request.body(Vec::new()).map_err(Error::HttpError)
    }
}

/// Makes a call whose response is one object, and passes its JSON to `read`. As many responses as `turns` has permits are in
/// memory at the same time.
///
/// # Errors
/// If the apiserver refuses or does not answer, or if `read` fails.
pub async fn object<T>(
    client: &Client,
    request: Request<Vec<u8>>,
    turns: &Semaphore,
    read: impl FnOnce(&[u8]) -> serde_json::Result<T>,
) -> kube::Result<T> {
    let body = client.request_stream(request).await?;
    // Not before there is a response: the silent admission webhook of one namespace must not hold up the others. The
    // semaphore is never closed, so there is no error.
    let _turn = turns.acquire().await;
    let mut json = Vec::new();
    pin!(body).read_to_end(&mut json).await.map_err(Error::ReadEvents)?;
    read(&json).map_err(Error::SerdeError)
}

/// Lists objects and passes the JSON of each to `on_item`. Returns the resourceVersion of the list, 0 if that is not a
/// number.
///
/// The request names no `resourceVersion`, which makes the list consistent: it shows every write before it began
/// (KEP-2340). Further pages are of the same moment.
///
/// # Errors
/// If the apiserver refuses or does not answer, if the continue token has expired (410), or if `on_item` fails.
pub async fn list(
    client: &Client,
    target: ReadTarget,
    mut on_item: impl FnMut(&[u8]) -> serde_json::Result<()>,
) -> kube::Result<u64> {
    let mut reader = ListReader::new(client.clone(), target);
    loop {
        if let Some(version) = reader.read_chunk(&mut on_item).await? {
            return Ok(version.parse().unwrap_or(0));
        }
    }
}

/// Watches objects after the resourceVersion `from`, for `seconds`, with bookmarks.
///
/// # Errors
/// If the apiserver refuses or does not answer. An item is an error if the connection fails or a line is no event.
pub(crate) async fn watch(
    client: &Client,
    target: &ReadTarget,
    from: &str,
    seconds: u64,
) -> kube::Result<impl Stream<Item = kube::Result<RawWatchEvent>> + Send + use<>> {
    let from = escape(from);
    let parameters =
        format!("watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}");
    let request = target.get(&parameters, "PartialObjectMetadata")?;
    let lines = client.request_stream(request).await?.lines();
    Ok(lines.map(|line| {
        serde_json::from_str::<RawWatchEvent>(&line.map_err(Error::ReadEvents)?).map_err(Error::SerdeError)
    }))
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

impl ListReader {
    pub(crate) fn new(client: Client, target: ReadTarget) -> Self {
        Self { client, target, length: *PAGE_LENGTH.end(), more: None, page: None }
    }

    /// Reads what has arrived and passes on the items that are complete. Returns the resourceVersion of the list at its end.
    ///
    /// # Errors
    /// As of [`list`]. The list cannot be continued then.
    pub(crate) async fn read_chunk(
        &mut self,
        on_item: &mut impl FnMut(&[u8]) -> serde_json::Result<()>,
    ) -> kube::Result<Option<String>> {
        let mut page = match self.page.take() {
            Some(page) => page,
            None => self.open_page().await?,
        };
        if page.read(on_item).await? {
            self.page = Some(page);
            return Ok(None);
        }
        self.length = next_length(page.items, page.bytes);
        let position: ListPosition = page.splitter.finish().map_err(Error::SerdeError)?;
        self.more = position.more.filter(|token| !token.is_empty());
        Ok(self.more.is_none().then_some(position.resource_version))
    }

    async fn open_page(&mut self) -> kube::Result<PageReader> {
        let token = self.more.as_ref().map(|token| format!("&continue={}", escape(token)));
        let parameters = format!("limit={}{}", self.length, token.unwrap_or_default());
        let request = self.target.get(&parameters, "PartialObjectMetadataList")?;
        let body = Box::pin(self.client.request_stream(request).await?);
        Ok(PageReader { body, splitter: ListSplitter::default(), items: 0, bytes: 0 })
    }
}

impl PageReader {
    /// Reads what has arrived. Returns false at the end of the page.
    async fn read(
        &mut self,
        on_item: &mut impl FnMut(&[u8]) -> serde_json::Result<()>,
    ) -> kube::Result<bool> {
        let Self { body, splitter, items, bytes } = self;
        let chunk = body.fill_buf().await.map_err(Error::ReadEvents)?;
        let read = chunk.len();
        let pushed = splitter.push(chunk, |item| {
            *items += 1;
            on_item(item)
        });
        pushed.map_err(Error::SerdeError)?;
        body.consume_unpin(read);
        *bytes += read;
        Ok(read > 0)
    }
}

/// How many objects the next page should have, if they are as large as those of this one.
fn next_length(items: usize, bytes: usize) -> usize {
    let fitting = PAGE_BYTES.saturating_mul(items.max(1)) / bytes.max(1);
    fitting.clamp(*PAGE_LENGTH.start(), *PAGE_LENGTH.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_shrink_with_the_size_of_their_objects() {
        assert_eq!(next_length(500, 500 * 4_000), 500);
        assert_eq!(next_length(500, 500 * 110_000), 76);
        assert_eq!(next_length(100, 100 * 1_350_000), 10);
        assert_eq!(next_length(0, 100), 500);
    }

    #[test]
    fn continue_tokens_are_escaped() {
        assert_eq!(escape("a/b=+~"), "a%2Fb%3D%2B~");
    }
}
