//! Requests and replies.

use http::{Method, Response, Uri};
use kube::client::Body;
use serde_json::{Value, json};

/// A request, cut into what the apiserver needs.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    query: String,
    /// The plural.
    pub(super) resource: String,
    /// "" for all namespaces and for cluster-wide resources.
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
    pub(super) body: Value,
}

impl Call {
    pub(super) fn parse(method: &Method, uri: &Uri, body: &[u8]) -> Self {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        // `api/v1/…` or `apis/GROUP/VERSION/…`.
        let parts = parts.get(if parts[0] == "api" { 2.. } else { 3.. }).unwrap_or_default();
        let (namespace, rest) = match parts {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |n: usize| rest.get(n).map(|part| (*part).to_owned());
        Self {
            method: method.clone(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            resource: part(0).unwrap_or_default(),
            namespace: namespace.to_owned(),
            name: part(1),
            subresource: part(2),
            body: serde_json::from_slice(body).unwrap_or_default(),
        }
    }

    pub(super) fn parameter(&self, key: &str) -> Option<&str> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Whether a list or watch of this call selects an object; only a field selector by name is known.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let name =
            self.parameter("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name%3D"));
        (self.namespace.is_empty() || metadata["namespace"] == *self.namespace)
            && name.is_none_or(|name| metadata["name"] == *name)
    }
}

/// A response that is not sent yet.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: u16,
    body: Vec<u8>,
}

impl Reply {
    pub(super) fn object(code: u16, object: &Value) -> Self {
        Self { code, body: object.to_string().into_bytes() }
    }

    pub(super) fn bytes(body: Vec<u8>) -> Self {
        Self { code: 200, body }
    }

    pub(super) fn refused(code: u16, reason: &str, message: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": message});
        Self::object(code, &status)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = body(self.body);
        *response.status_mut() = http::StatusCode::from_u16(self.code).unwrap_or_default();
        response
    }
}

pub(super) fn body(bytes: Vec<u8>) -> Response<Body> {
    Response::new(Body::from(bytes))
}
