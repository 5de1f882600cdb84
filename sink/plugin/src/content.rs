//! Puts a result's logs together again, piece by piece, and checks every digest on the way.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use job_handler_shared::result::manifest::{Encoding, LogPlace};
use sha2::{Digest, Sha256};

use crate::{
    ReadError,
    sanitize::line,
    source::{Source, Stored},
};

/// Hands the logs of a result to `sink`, in order and in bounded memory. What it gives back is wrong with them:
/// damage does not keep the rest from being read.
///
/// # Errors
/// Where there are no logs, a call fails, or `sink` does.
pub async fn stream(
    source: &Source,
    stored: &Stored,
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Vec<String>, ReadError> {
    let Some(place) = &stored.manifest.logs else { return Err(no_logs(stored)) };
    let mut faults = Vec::new();
    let mut decoder = Decoder::new(place.encoding, sink);
    let (object, namespace) = (&stored.object, stored.object.namespace.as_str());
    if place.shards.is_empty() {
        match object.data.get(&place.key) {
            Some(piece) => decoder.write(piece)?,
            None => faults.push(format!("{} has no `{}`: the logs are gone", object.place(), place.key)),
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
        let found = source.get(object.kind, namespace, &shard.name).await?;
        let piece = found.and_then(|mut object| object.data.remove(&place.key));
        let Some(piece) = piece else {
            faults.push(format!("{name}, is gone: the logs end before it"));
            break;
        };
        if piece.len() != shard.bytes || hex(&piece) != shard.sha256 {
            faults.push(format!("{name}, is not what was stored: its digest doesn't match"));
        }
        decoder.write(&piece)?;
    }
    let (bytes, digest, broken) = decoder.finish()?;
    if let Some(why) = broken {
        faults.push(format!("the stored logs cannot be unpacked to their end: {why}"));
    }
    if bytes != place.bytes as u64 || digest != place.sha256 {
        faults.push(mismatch(stored, place, bytes));
    }
    Ok(faults)
}

fn mismatch(stored: &Stored, place: &LogPlace, bytes: u64) -> String {
    let job = &stored.manifest.job;
    format!(
        "the logs of Job {}/{} are not what was stored: the digest doesn't match (stored were {} bytes, these are \
         {bytes}); they were changed or damaged since",
        job.namespace, job.name, place.bytes
    )
}

fn no_logs(stored: &Stored) -> ReadError {
    let job = &stored.manifest.job;
    let mut text = format!("the result of Job {}/{} holds no logs", job.namespace, job.name);
    match stored.manifest.completeness.lost.as_slice() {
        [] => text.push_str(": its policies ask for none (results.logs.mode: None)"),
        lost => text.push_str(&format!(": {}", line(&lost.join("; ")))),
    }
    ReadError::NotFound(text)
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Unpacks, counts and digests.
enum Decoder<'a, S: FnMut(&[u8]) -> io::Result<()>> {
    Plain(Tee<'a, S>),
    Gzip { decoder: Box<MultiGzDecoder<Tee<'a, S>>>, broken: Option<String> },
}

impl<'a, S: FnMut(&[u8]) -> io::Result<()>> Decoder<'a, S> {
    fn new(encoding: Encoding, sink: &'a mut S) -> Self {
        let tee = Tee { sink, bytes: 0, digest: Sha256::new(), failed: None };
        match encoding {
            Encoding::Plain => Self::Plain(tee),
            Encoding::Gzip => Self::Gzip { decoder: Box::new(MultiGzDecoder::new(tee)), broken: None },
        }
    }

    /// Takes the next stored bytes; fails only where the sink does.
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tee) => tee.write_all(piece),
            Self::Gzip { broken: Some(_), .. } => Ok(()),
            Self::Gzip { decoder, broken } => match decoder.write_all(piece) {
                Ok(()) => Ok(()),
                Err(error) => {
                    if let Some(failed) = decoder.get_mut().failed.take() {
                        return Err(failed);
                    }
                    *broken = Some(error.to_string());
                    Ok(())
                }
            },
        }
    }

    /// Bytes, their digest, and why they could not be unpacked to their end.
    fn finish(self) -> io::Result<(u64, String, Option<String>)> {
        match self {
            Self::Plain(mut tee) => Ok((tee.bytes, tee.digest(), None)),
            Self::Gzip { mut decoder, mut broken } => {
                if broken.is_none()
                    && let Err(error) = decoder.try_finish()
                {
                    broken = Some(error.to_string());
                }
                let tee = decoder.get_mut();
                match tee.failed.take() {
                    Some(failed) => Err(failed),
                    None => Ok((tee.bytes, tee.digest(), broken)),
                }
            }
        }
    }
}

/// Passes on, counts and digests.
struct Tee<'a, S> {
    sink: &'a mut S,
    bytes: u64,
    digest: Sha256,
    /// Why the sink took no more: to be told from what is wrong with the packed bytes.
    failed: Option<io::Error>,
}

impl<S> Tee<'_, S> {
    fn digest(&mut self) -> String {
        format!("{:x}", self.digest.finalize_reset())
    }
}

impl<S: FnMut(&[u8]) -> io::Result<()>> Write for Tee<'_, S> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.bytes += piece.len() as u64;
        self.digest.update(piece);
        match (self.sink)(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
