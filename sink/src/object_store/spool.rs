//! Full logs on their way to the object store: gzipped files in a local folder, so that a log of any length takes no
//! memory, a slow store delays no reading, and nothing is uploaded before it is known to be needed.
//!
//! A file lives as long as the value that stands for it. Files of an earlier process are deleted at the start.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::{Compression, write::GzEncoder};
use job_handler_shared::result::pods::FullLogObject;
use tokio::{fs::File, io::AsyncWriteExt};

/// Compressed bytes that are buffered before they are written.
const BUFFER: usize = 64 << 10;

/// A folder with a size limit; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Spool(Arc<SpoolFolder>);

#[derive(Debug)]
struct SpoolFolder {
    folder: PathBuf,
    max: u64,
    used: AtomicU64,
    files: AtomicU64,
}

/// A full log, gzipped, in a file that is deleted when this value is dropped.
#[derive(Debug)]
pub(crate) struct SpooledLog {
    path: PathBuf,
    bytes: u64,
    spool: Spool,
}

/// Where the full log is, if its result has only an excerpt.
#[derive(Clone, Debug, Default)]
pub(crate) enum FullLog {
    /// Nowhere: the excerpt is complete, or no object store is configured.
    #[default]
    Absent,
    /// In the spool.
    Spooled(Arc<SpooledLog>),
    /// It could not be stored, for this reason.
    Failed(String),
    /// In the object store.
    Stored(FullLogObject),
}

impl Spool {
    /// Empties the folder, or creates it, and uses at most `max` bytes of it.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub(crate) fn open(folder: &Path, max: u64) -> io::Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(folder)?;
        let probe = folder.join("probe");
        std::fs::write(&probe, b"")?;
        std::fs::remove_file(&probe)?;
        Ok(Self(Arc::new(SpoolFolder {
            folder: folder.to_owned(),
            max,
            used: AtomicU64::new(0),
            files: AtomicU64::new(0),
        })))
    }

    /// Spools a log that is complete in memory.
    pub(crate) async fn spool(&self, bytes: &[u8]) -> FullLog {
        match SpoolWriter::create(self, &[bytes]).await {
            Ok(writer) => writer.finish().await,
            Err(reason) => FullLog::Failed(reason),
        }
    }

    async fn create_file(&self) -> io::Result<(SpooledLog, File)> {
        let name = format!("{}.log.gz", self.0.files.fetch_add(1, Ordering::Relaxed));
        let path = self.0.folder.join(name);
        let file = File::create_new(&path).await?;
        Ok((SpooledLog { path, bytes: 0, spool: self.clone() }, file))
    }

    /// Reserves space; one log may use half of it.
    fn reserve(&self, bytes: u64, of_log: u64) -> Result<(), String> {
        let SpoolFolder { max, used, .. } = &*self.0;
        if of_log + bytes > max / 2 {
            return Err(format!("one log may use half of the spool's {max} bytes, and this one is larger"));
        }
        let more = |used: u64| (used + bytes <= *max).then_some(used + bytes);
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|used| format!("the spool was full: {used} of {max} bytes were used"))
    }
}

impl SpooledLog {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for SpooledLog {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "a spooled log cannot be deleted before the next start: {error}");
        }
        self.spool.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl PartialEq for FullLog {
    // A spooled log equals only itself.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::Spooled(one), Self::Spooled(two)) => Arc::ptr_eq(one, two),
            (Self::Failed(one), Self::Failed(two)) => one == two,
            (Self::Stored(one), Self::Stored(two)) => one == two,
            _ => false,
        }
    }
}

impl Eq for FullLog {}

/// Writes one log to a file of the spool.
#[derive(Debug)]
pub(super) struct SpoolWriter {
    encoder: GzEncoder<Vec<u8>>,
    file: File,
    spooled: SpooledLog,
}

impl SpoolWriter {
    /// Creates a file that starts with these pieces.
    pub(super) async fn create(spool: &Spool, pieces: &[&[u8]]) -> Result<Self, String> {
        let (spooled, file) = spool.create_file().await.map_err(|error| write_error(&error))?;
        let encoder = GzEncoder::new(Vec::with_capacity(BUFFER), Compression::fast());
        let mut writer = Self { encoder, file, spooled };
        for piece in pieces {
            writer.write(piece).await?;
        }
        Ok(writer)
    }

    pub(super) async fn write(&mut self, piece: &[u8]) -> Result<(), String> {
        // A log can come in one piece; compressing a long piece would block other tasks.
        for piece in piece.chunks(BUFFER) {
            // Writing to memory does not fail.
            self.encoder.write_all(piece).map_err(|error| write_error(&error))?;
            if self.encoder.get_ref().len() >= BUFFER {
                let buffered = std::mem::replace(self.encoder.get_mut(), Vec::with_capacity(BUFFER));
                self.put(&buffered).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), String> {
        let more = bytes.len() as u64;
        self.spooled.spool.reserve(more, self.spooled.bytes)?;
        self.spooled.bytes += more;
        self.file.write_all(bytes).await.map_err(|error| write_error(&error))
    }

    pub(super) async fn finish(self) -> FullLog {
        self.try_finish().await.map_or_else(FullLog::Failed, |log| FullLog::Spooled(Arc::new(log)))
    }

    async fn try_finish(mut self) -> Result<SpooledLog, String> {
        self.encoder.try_finish().map_err(|error| write_error(&error))?;
        let rest = std::mem::take(self.encoder.get_mut());
        self.put(&rest).await?;
        // Only a flush shows that all writes succeeded.
        self.file.flush().await.map_err(|error| write_error(&error))?;
        Ok(self.spooled)
    }
}

fn write_error(error: &io::Error) -> String {
    format!("it could not be spooled: {error}")
}

#[cfg(test)]
impl Spool {
    pub(crate) fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unzipped(full: &FullLog) -> Vec<u8> {
        let FullLog::Spooled(spooled) = full else { panic!("{full:?}") };
        let file = std::fs::File::open(spooled.path()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), spooled.bytes());
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut out).unwrap();
        out
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn a_full_spool_rejects_logs_until_others_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = {
            let mut state = 1_u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            (0..100_000).map(|_| next()).collect()
        };
        let spool = Spool::open(folder.path(), 220_000).unwrap();
        let FullLog::Failed(why) = spool.spool(&noise.repeat(2)).await else {
            panic!("it is more than half")
        };
        assert!(why.contains("half"), "{why}");
        let first = spool.spool(&noise).await;
        assert_eq!(unzipped(&first), noise);
        let _second = spool.spool(&noise).await;
        let FullLog::Failed(why) = spool.spool(&noise).await else { panic!("there is no room for it") };
        assert!(why.contains("full"), "{why}");
        assert_eq!(files(folder.path()), 2, "failed attempts leave no file");
        drop(first);
        assert!(matches!(spool.spool(&noise).await, FullLog::Spooled(_)));
    }

    #[tokio::test]
    async fn files_of_an_earlier_process_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("7.log.gz"), "cut").unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(files(folder.path()), 0);
        assert_eq!(unzipped(&spool.spool(b"").await), b"");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Spool::open(&file, 1).is_err(), "not a folder");
    }
}
