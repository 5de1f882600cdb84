//! Reassembles the stored logs of a result piece by piece, and verifies every digest.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use job_handler_shared::result::{
    digest::sha256_hex,
    manifest::{Encoding, LogPlace},
};
use sha2::{Digest, Sha256};

use crate::{
    error::PluginError,
    result_source::{JobResult, ResultSource},
    terminal::escape_line,
};

/// Writes the logs to `output`, in order and in bounded memory. Returns the faults it found; it reads on after damage as far
/// as possible.
///
/// # Errors
/// If the result has no logs, or a call or `output` fails.
pub(crate) async fn stream_logs(
    source: &ResultSource,
    result: &JobResult,
    output: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Vec<String>, PluginError> {
    let Some(place) = &result.manifest.logs else { return Err(no_logs(result)) };
    let mut faults = Vec::new();
    let mut decoder = LogDecoder::new(place.encoding, output);
    let (object, namespace) = (&result.object, result.object.namespace.as_str());
    if place.shards.is_empty() {
        match object.data.get(&place.key) {
            Some(piece) => decoder.write(piece)?,
            None => faults.push(format!(
                "{} has no key `{}`: the logs are missing",
                object.display_name(),
                place.key
            )),
        }
    }
    for (n, shard) in place.shards.iter().enumerate() {
        let name = format!(
            "shard {} of {}, {} {namespace}/{}",
            n + 1,
            place.shards.len(),
            object.kind.kind(),
            shard.name
        );
        let shard_object = source.get(object.kind, namespace, &shard.name).await?;
        let piece = shard_object.and_then(|mut object| object.data.remove(&place.key));
        let Some(piece) = piece else {
            faults.push(format!("{name}, is missing: the logs end before it"));
            break;
        };
        if piece.len() != shard.bytes || sha256_hex(&piece) != shard.sha256 {
            faults.push(format!("{name}, differs from what was stored: the digest doesn't match"));
        }
        decoder.write(&piece)?;
    }
    let (bytes, digest, error) = decoder.finish()?;
    if let Some(error) = error {
        faults.push(format!("the stored logs cannot be unpacked to the end: {error}"));
    }
    if bytes != place.bytes as u64 || digest != place.sha256 {
        faults.push(digest_mismatch(result, place, bytes));
    }
    Ok(faults)
}

fn digest_mismatch(result: &JobResult, place: &LogPlace, bytes: u64) -> String {
    let job = &result.manifest.job;
    format!(
        "the logs of Job {}/{} differ from what was stored: the digest doesn't match ({} bytes were stored, {bytes} were \
         read); they were changed or damaged",
        job.namespace, job.name, place.bytes
    )
}

fn no_logs(result: &JobResult) -> PluginError {
    let job = &result.manifest.job;
    let mut text = format!("the result of Job {}/{} has no logs", job.namespace, job.name);
    match result.manifest.completeness.lost.as_slice() {
        [] => text.push_str(": its policies set `results.logs.mode: None`"),
        lost => text.push_str(&format!(": {}", escape_line(&lost.join("; ")))),
    }
    PluginError::NotFound(text)
}

/// Unpacks the stored bytes, and counts and hashes the logs.
enum LogDecoder<'a, F: FnMut(&[u8]) -> io::Result<()>> {
    Plain(HashingWriter<'a, F>),
    Gzip {
        decoder: Box<MultiGzDecoder<HashingWriter<'a, F>>>,
        /// The stream is damaged: the rest is skipped.
        error: Option<String>,
    },
}

impl<'a, F: FnMut(&[u8]) -> io::Result<()>> LogDecoder<'a, F> {
    fn new(encoding: Encoding, output: &'a mut F) -> Self {
        let writer = HashingWriter { output, bytes: 0, digest: Sha256::new(), error: None };
        match encoding {
            Encoding::Plain => Self::Plain(writer),
            Encoding::Gzip => Self::Gzip { decoder: Box::new(MultiGzDecoder::new(writer)), error: None },
        }
    }

    /// Decodes the next stored bytes. Fails only if the output does.
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(writer) => {
                writer.write_all(piece).map_err(|error| writer.error.take().unwrap_or(error))
            }
            Self::Gzip { error: Some(_), .. } => Ok(()),
            Self::Gzip { decoder, error } => match decoder.write_all(piece) {
                Ok(()) => Ok(()),
                Err(decode_error) => {
                    if let Some(output_error) = decoder.get_mut().error.take() {
                        return Err(output_error);
                    }
                    *error = Some(decode_error.to_string());
                    Ok(())
                }
            },
        }
    }

    /// Returns the length and digest of the logs, and the error that stopped unpacking.
    fn finish(self) -> io::Result<(u64, String, Option<String>)> {
        match self {
            Self::Plain(mut writer) => Ok((writer.bytes, writer.hex_digest(), None)),
            Self::Gzip { mut decoder, mut error } => {
                if error.is_none()
                    && let Err(decode_error) = decoder.try_finish()
                {
                    error = Some(decode_error.to_string());
                }
                let writer = decoder.get_mut();
                match writer.error.take() {
                    Some(output_error) => Err(output_error),
                    None => Ok((writer.bytes, writer.hex_digest(), error)),
                }
            }
        }
    }
}

/// Counts and hashes what it passes on.
struct HashingWriter<'a, F> {
    output: &'a mut F,
    bytes: u64,
    digest: Sha256,
    /// Error of the output. Kept here, because the gzip decoder does not distinguish it from damaged bytes.
    error: Option<io::Error>,
}

impl<F> HashingWriter<'_, F> {
    fn hex_digest(&mut self) -> String {
        format!("{:x}", self.digest.finalize_reset())
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for HashingWriter<'_, F> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.bytes += piece.len() as u64;
        self.digest.update(piece);
        match (self.output)(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use job_handler_shared::{result::storage_kind::StorageKind, testing::apiserver::Apiserver};
    use serde_json::json;

    use super::*;
    use crate::test_results::{manifest, put_object, refuse_get, result_of, source};

    const TEXT: &[u8] = b"first\n[... 80 of 91 bytes left out ...]\nlast\n";

    /// A result whose logs are `text`, stored as these pieces: shards with these names, or else one piece in its object.
    fn stored(apiserver: &Apiserver, encoding: &str, text: &[u8], pieces: &[(&str, &[u8])]) -> JobResult {
        let shard = |(name, piece): &(&str, &[u8])| {
            put_object(apiserver, StorageKind::ConfigMap, name, &[], "logs", piece);
            json!({"name": name, "bytes": piece.len(), "sha256": sha256_hex(piece)})
        };
        let shards: Vec<_> = pieces.iter().filter(|(name, _)| !name.is_empty()).map(shard).collect();
        let mut manifest = manifest("build", "u", 1);
        manifest["logs"] = json!({"key": "logs", "encoding": encoding, "bytes": text.len(),
            "sha256": sha256_hex(text), "shards": shards});
        let mut result = result_of(&manifest);
        let own = pieces.iter().find(|(name, _)| name.is_empty());
        result.object.data.extend(own.map(|(_, piece)| ("logs".to_owned(), piece.to_vec())));
        result
    }

    /// The output and the faults.
    async fn read(apiserver: &Apiserver, result: &JobResult) -> (Vec<u8>, Vec<String>) {
        let mut out = Vec::new();
        let mut output = |piece: &[u8]| out.write_all(piece);
        let faults = stream_logs(&source(apiserver), result, &mut output).await.unwrap();
        (out, faults)
    }

    async fn error(apiserver: &Apiserver, result: &JobResult) -> PluginError {
        stream_logs(&source(apiserver), result, &mut |_| Ok(())).await.unwrap_err()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn long_text() -> Vec<u8> {
        (0..20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect()
    }

    /// Gzipped, in three shards whose names are not in their order.
    fn stored_in_shards(apiserver: &Apiserver, text: &[u8]) -> JobResult {
        let zipped = gzip(text);
        let third = zipped.len() / 3;
        let [a, b, c] = [&zipped[..third], &zipped[third..2 * third], &zipped[2 * third..]];
        stored(apiserver, "gzip", text, &[("z", a), ("x", b), ("y", c)])
    }

    #[tokio::test]
    async fn logs_are_returned_as_they_were_before_they_were_stored() {
        let apiserver = Apiserver::default();
        let plain = stored(&apiserver, "plain", TEXT, &[("", TEXT)]);
        assert_eq!(read(&apiserver, &plain).await, (TEXT.to_vec(), Vec::new()), "with the line about a gap");
        let zipped = stored(&apiserver, "gzip", TEXT, &[("", &gzip(TEXT))]);
        assert_eq!(read(&apiserver, &zipped).await, (TEXT.to_vec(), Vec::new()));
        // Gzip may consist of several members.
        let members = [gzip(&TEXT[..9]), gzip(&TEXT[9..])].concat();
        let zipped = stored(&apiserver, "gzip", TEXT, &[("", &members)]);
        assert_eq!(read(&apiserver, &zipped).await, (TEXT.to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn shards_are_joined_in_the_order_of_the_manifest() {
        let (apiserver, text) = (Apiserver::default(), long_text());
        let result = stored_in_shards(&apiserver, &text);
        assert_eq!(read(&apiserver, &result).await, (text, Vec::new()));
    }

    #[tokio::test]
    async fn shards_of_a_secret_are_secrets() {
        let apiserver = Apiserver::default();
        let mut result = stored(&apiserver, "plain", TEXT, &[("a", TEXT)]);
        result.object.kind = StorageKind::Secret;
        let (out, faults) = read(&apiserver, &result).await;
        assert_eq!(out, b"");
        assert!(faults[0].starts_with("shard 1 of 1, Secret ci/a, is missing"), "{faults:?}");
        put_object(&apiserver, StorageKind::Secret, "a", &[], "logs", TEXT);
        assert_eq!(read(&apiserver, &result).await, (TEXT.to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn a_changed_shard_is_reported_and_the_next_ones_are_read() {
        for changed in [&b"B\n"[..], b"longer\n"] {
            let apiserver = Apiserver::default();
            let pieces: [(&str, &[u8]); 3] = [("1", b"a\n"), ("2", b"b\n"), ("3", b"c\n")];
            let result = stored(&apiserver, "plain", b"a\nb\nc\n", &pieces);
            put_object(&apiserver, StorageKind::ConfigMap, "2", &[], "logs", changed);
            let (out, faults) = read(&apiserver, &result).await;
            assert_eq!(out, [&b"a\n"[..], changed, b"c\n"].concat());
            assert_eq!(
                faults[0],
                "shard 2 of 3, ConfigMap ci/2, differs from what was stored: the digest doesn't match"
            );
            let bytes = format!("(6 bytes were stored, {} were read)", out.len());
            assert!(faults.len() == 2 && faults[1].contains(&bytes), "{faults:?}");
        }
    }

    #[tokio::test]
    async fn logs_end_before_a_missing_shard() {
        let (apiserver, text) = (Apiserver::default(), long_text());
        let result = stored_in_shards(&apiserver, &text);
        apiserver.remove("configmaps", "ci", "x");
        let (out, faults) = read(&apiserver, &result).await;
        assert!(out.len() > 10_000 && out.len() < text.len() && text.starts_with(&out), "{}", out.len());
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(faults[0], "shard 2 of 3, ConfigMap ci/x, is missing: the logs end before it");
        assert!(faults[1].starts_with("the stored logs cannot be unpacked to the end: "), "{faults:?}");
        assert!(faults[2].contains(&format!("{} were read", out.len())), "{faults:?}");
        // An object without the key is no better.
        put_object(&apiserver, StorageKind::ConfigMap, "x", &[], "other", b"");
        assert_eq!(read(&apiserver, &result).await, (out, faults));
    }

    #[tokio::test]
    async fn damaged_gzip_is_read_up_to_the_damage() {
        let (apiserver, text) = (Apiserver::default(), long_text());
        let result = stored_in_shards(&apiserver, &text);
        put_object(&apiserver, StorageKind::ConfigMap, "x", &[], "logs", &[0xff; 5_000]);
        let (out, faults) = read(&apiserver, &result).await;
        assert_eq!(out[..10_000], text[..10_000]);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("ConfigMap ci/x, differs from what was stored"), "{faults:?}");
        assert!(faults[1].starts_with("the stored logs cannot be unpacked to the end: "), "{faults:?}");
    }

    #[tokio::test]
    async fn a_result_without_its_logs_says_why() {
        let apiserver = Apiserver::default();
        let missing = stored(&apiserver, "plain", TEXT, &[]);
        let (out, faults) = read(&apiserver, &missing).await;
        assert_eq!(out, b"");
        assert_eq!(faults[0], "ConfigMap ci/build-results has no key `logs`: the logs are missing");
        let mut without = result_of(&manifest("build", "u", 1));
        let none = "the result of Job ci/build has no logs: its policies set `results.logs.mode: None`";
        assert_eq!(error(&apiserver, &without).await.to_string(), none);
        without.manifest.completeness.lost = vec!["no room".into(), "no \u{1b}time".into()];
        let lost = "the result of Job ci/build has no logs: no room; no \\x1btime";
        assert_eq!(error(&apiserver, &without).await.to_string(), lost);
    }

    #[tokio::test]
    async fn a_failed_call_and_a_failed_output_are_errors() {
        let (apiserver, text) = (Apiserver::default(), long_text());
        let sharded = stored_in_shards(&apiserver, &text);
        refuse_get(&apiserver, "/configmaps/y", 500);
        assert!(matches!(error(&apiserver, &sharded).await, PluginError::Api(_)));
        let plain = stored(&apiserver, "plain", TEXT, &[("", TEXT)]);
        let short = stored(&apiserver, "gzip", TEXT, &[("", &gzip(TEXT))]);
        for result in [plain, short, sharded] {
            let mut closed = |_: &[u8]| Err(io::Error::new(io::ErrorKind::BrokenPipe, "closed"));
            let error = stream_logs(&source(&apiserver), &result, &mut closed).await.unwrap_err();
            assert!(
                matches!(&error, PluginError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
            );
            assert_eq!(error.to_string(), "cannot write: closed");
        }
    }
}
