//! The seal of a result: how the sink recognises what it wrote.
//!
//! Whoever may write ConfigMaps can give one the labels and the content of a result. The seal is an HMAC over the Job
//! (namespace and uid) and over what the sink counted when it wrote the result. Only the sinks can read its key
//! ([`crate::result::seal_key`]), so that nobody else can make one. It is part of the write that commits the result: there is
//! no moment, and no crash, between the two.
//!
//! A seal that is copied within its namespace, for the same Job, still holds: it says that the sink stored a result of this
//! Job, which is true.

use std::sync::{Arc, OnceLock};

use job_handler_shared::{
    keys,
    result::metadata::{SEAL, SEALED_ANNOTATIONS},
};
use kube::core::ObjectMeta;
use ring::hmac;

/// Seals results and recognises them; clones share the key. Without a key, no seal holds.
#[derive(Clone, Debug, Default)]
pub struct Seal(Arc<OnceLock<hmac::Key>>);

impl Seal {
    /// Sets the key, unless there is one.
    pub fn set_key(&self, key: &[u8]) {
        let _: Result<_, _> = self.0.set(hmac::Key::new(hmac::HMAC_SHA256, key));
    }

    pub(super) fn has_key(&self) -> bool {
        self.0.get().is_some()
    }

    /// Seals the metadata of a result, which have to be complete.
    pub(crate) fn put(&self, metadata: &mut ObjectMeta) {
        let Some(key) = self.0.get() else { return };
        let tag = hmac::sign(key, &sealed_content(metadata));
        let text: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        metadata.annotations.get_or_insert_default().insert(SEAL.to_owned(), text);
    }

    /// Whether the sink wrote this result, and nobody has changed what the seal covers.
    pub fn holds(&self, metadata: &ObjectMeta) -> bool {
        let tag = metadata.annotations.as_ref().and_then(|all| from_hex(all.get(SEAL)?));
        let known = self.0.get().zip(tag);
        known.is_some_and(|(key, tag)| hmac::verify(key, &sealed_content(metadata), &tag).is_ok())
    }
}

/// What the seal covers. Each part has its length before it, so that no two contents have the same bytes.
fn sealed_content(metadata: &ObjectMeta) -> Vec<u8> {
    let uid = metadata.labels.as_ref().and_then(|labels| labels.get(keys::JOB_UID));
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key));
    let annotations = SEALED_ANNOTATIONS.into_iter().map(annotation);
    let mut content = Vec::new();
    for part in [metadata.namespace.as_ref(), uid].into_iter().chain(annotations) {
        // An absent part is not the same as an empty one.
        content.push(u8::from(part.is_some()));
        let text = part.map_or("", String::as_str);
        content.extend((text.len() as u64).to_be_bytes());
        content.extend(text.as_bytes());
    }
    content
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use job_handler_shared::result::metadata::{LOST, OUTBOX, PENDING, RETENTION};

    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn metadata() -> ObjectMeta {
        ObjectMeta {
            name: Some("a-results".into()),
            namespace: Some("ci".into()),
            labels: Some(texts(&[(keys::JOB_UID, "u")])),
            annotations: Some(texts(&[(RETENTION, "{}")])),
            ..ObjectMeta::default()
        }
    }

    fn seal(key: u8) -> Seal {
        let seal = Seal::default();
        seal.set_key(&[key; 32]);
        seal
    }

    #[test]
    fn a_seal_holds_for_what_the_sink_wrote() {
        let mut sealed = metadata();
        assert!(!seal(1).holds(&sealed), "without a seal");
        seal(1).put(&mut sealed);
        assert!(seal(1).holds(&sealed), "of another process with the same key");
        assert!(!seal(2).holds(&sealed), "another key");
        assert!(!Seal::default().holds(&sealed), "no key yet");

        // What changes later, and what users may add.
        sealed.name = Some("a-results-u".into());
        sealed.annotations.as_mut().unwrap().extend(texts(&[(OUTBOX, "ci"), ("team", "x")]));
        sealed.labels.as_mut().unwrap().extend(texts(&[(PENDING, "pending"), ("team", "x")]));
        assert!(seal(1).holds(&sealed));
    }

    #[test]
    fn a_seal_is_for_one_job_and_for_what_was_counted() {
        let mut sealed = metadata();
        seal(1).put(&mut sealed);
        let changes: [fn(&mut ObjectMeta); 6] = [
            |metadata| metadata.namespace = Some("kube-system".into()),
            |metadata| metadata.labels.as_mut().unwrap().extend(texts(&[(keys::JOB_UID, "v")])),
            |metadata| metadata.annotations.as_mut().unwrap().extend(texts(&[(RETENTION, "{ }")])),
            |metadata| metadata.annotations.as_mut().unwrap().extend(texts(&[(LOST, "")])),
            |metadata| metadata.annotations.as_mut().unwrap().extend(texts(&[(SEAL, "ä")])),
            |metadata| metadata.annotations.as_mut().unwrap().extend(texts(&[(SEAL, "")])),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut changed = sealed.clone();
            change(&mut changed);
            assert!(!seal(1).holds(&changed), "change {n}");
        }
    }
}
