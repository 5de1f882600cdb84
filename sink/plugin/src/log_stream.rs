//! Reassembles the stored logs of a result piece by piece, and verifies every digest.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use job_handler_shared::result::manifest::{Encoding, LogPlace};
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

fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
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
            Self::Plain(writer) => writer.write_all(piece),
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
    /// Error of the output. Kept here, because the gzip decoder does not tell it from damage of the stored bytes.
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
