//! etcd through its JSON gateway: single keys, and one stream over the keys of policies, ledgers and Jobs, in order of
//! revision.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::etcd_history::StoredWrite;
use crate::harness::error::{Error, Result};

/// The range of keys from `/registry/job-handler.io/…` to `/registry/jobs/…`, with little in between.
const FROM: &str = "/registry/job-handler.io/";
const TO: &str = "/registry/jobs0";

/// The current revision.
pub(super) async fn revision(address: SocketAddr) -> Result<u64> {
    let answer = call(address, "/v3/kv/range", &json!({"key": STANDARD.encode(FROM), "limit": 1})).await?;
    number(&answer["header"]["revision"]).ok_or_else(|| wrong(address, &answer.to_string()))
}

/// The value of a key, which is in base64.
pub(super) async fn value(address: SocketAddr, key: &str) -> Result<Vec<u8>> {
    let answer = call(address, "/v3/kv/range", &json!({"key": key})).await?;
    let value = answer["kvs"][0]["value"].as_str().ok_or_else(|| wrong(address, &format!("no key {key}")))?;
    STANDARD.decode(value).map_err(|error| wrong(address, &error.to_string()))
}

/// Writes a key and its value, both in base64.
pub(super) async fn put(address: SocketAddr, pair: &Value) -> Result<()> {
    call(address, "/v3/kv/put", pair).await.map(drop)
}

/// Calls `on_write` for every write of a Job or a ledger from the revision on, until etcd ends the stream.
pub(super) async fn watch(
    address: SocketAddr,
    from: u64,
    mut on_write: impl FnMut(StoredWrite),
) -> Result<()> {
    let asked = json!({"create_request": {
        "key": STANDARD.encode(FROM), "range_end": STANDARD.encode(TO), "start_revision": from.to_string(),
    }});
    let mut body = post(address, "/v3/watch", &asked).await?.into_body();
    let mut unread = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| wrong(address, &error.to_string()))?;
        unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        // One message per line.
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            message(address, &line, &mut on_write)?;
        }
    }
    Ok(())
}

fn message(address: SocketAddr, line: &[u8], on_write: &mut impl FnMut(StoredWrite)) -> Result<()> {
    let message: Value = serde_json::from_slice(line).map_err(|error| wrong(address, &error.to_string()))?;
    let result = &message["result"];
    if result["canceled"] == true || result.is_null() {
        return Err(wrong(address, &message.to_string()));
    }
    for event in result["events"].as_array().into_iter().flatten() {
        let write = write(event).map_err(|why| wrong(address, &format!("{why}: {event}")))?;
        write.into_iter().for_each(&mut *on_write);
    }
    Ok(())
}

fn write(event: &Value) -> Result<Option<StoredWrite>, String> {
    let bytes = |field: &str| {
        let text = event["kv"][field].as_str().unwrap_or_default();
        STANDARD.decode(text).map_err(|error| format!("{field}: {error}"))
    };
    let key = String::from_utf8(bytes("key")?).map_err(|error| error.to_string())?;
    let revision = number(&event["kv"]["mod_revision"]).ok_or("expected a mod_revision")?;
    // The gateway omits PUT, the default.
    if !key.starts_with("/registry/jobs/") && !key.contains("/jobledgers/") {
        return Ok(None);
    }
    let object = match event["type"].as_str() {
        Some("DELETE") => None,
        _ => {
            let stored = serde_json::from_slice::<Value>(&bytes("value")?);
            Some(stored.map_err(|error| format!("{key} is not stored as JSON ({error})"))?)
        }
    };
    Ok(Some(StoredWrite { revision, key, object }))
}

async fn call(address: SocketAddr, path: &str, asked: &Value) -> Result<Value> {
    let body = post(address, path, asked).await?.into_body().collect().await;
    let body = body.map_err(|error| wrong(address, &error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| wrong(address, &error.to_string()))
}

async fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Response<Incoming>> {
    let tcp =
        TcpStream::connect(address).await.map_err(Error::io(format!("connecting to etcd at {address}")))?;
    let (mut sender, connection) =
        handshake(TokioIo::new(tcp)).await.map_err(|error| wrong(address, &error.to_string()))?;
    // Ends with the response's body, or with etcd.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| wrong(address, &error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| wrong(address, &error.to_string()))?;
    if !response.status().is_success() {
        return Err(wrong(address, &format!("{path} answers {}", response.status())));
    }
    Ok(response)
}

/// The gateway writes 64-bit numbers as strings.
fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

fn wrong(address: SocketAddr, why: &str) -> Error {
    Error::Invalid(format!("etcd at {address}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_about_jobs_are_read_and_others_skipped() {
        let kv = |key: &str, value: &str| {
            json!({"kv": {"key": STANDARD.encode(key), "mod_revision": "12",
            "value": STANDARD.encode(value)}})
        };
        let job = write(&kv("/registry/jobs/ci/a", "{}")).unwrap().unwrap();
        assert_eq!((job.revision, job.object), (12, Some(json!({}))));
        assert_eq!(write(&kv("/registry/job-handler.io/jobpolicies/ci/a", "{}")).unwrap(), None);
        let mut gone = kv("/registry/jobs/ci/a", "");
        gone["type"] = "DELETE".into();
        assert_eq!(write(&gone).unwrap().unwrap().object, None);
        let why = write(&kv("/registry/jobs/ci/a", "k8s\0protobuf")).unwrap_err();
        assert!(why.contains("not stored as JSON"), "{why}");
    }

    #[test]
    fn a_cancelled_watch_is_an_error() {
        let address = ([127, 0, 0, 1], 1).into();
        let line = br#"{"result":{"canceled":true,"compact_revision":"9"}}"#;
        assert!(message(address, line, &mut |_| ()).is_err());
        assert!(message(address, br#"{"result":{"created":true}}"#, &mut |_| ()).is_ok());
        assert!(message(address, br#"{"error":{"message":"no"}}"#, &mut |_| ()).is_err());
    }
}
