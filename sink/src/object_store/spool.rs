//! Whole logs on their way into the object store: gzipped into files of a folder of ours, so that a log of any length
//! takes no memory, a slow store holds up no reading, and nothing is uploaded of which nobody knows yet whether it is
//! wanted.
//!
//! A log comes here at the moment where a first byte of it would be left out: until then, all of it is in memory. So
//! whatever fits its budget costs nothing here. Files live as long as the value that stands for them, and none outlives
//! the process: a predecessor's are removed at the start.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::{Compression, write::GzEncoder};
use job_handler_shared::result::pods::WholeLog;
use tokio::{fs::File, io::AsyncWriteExt};

use crate::harvest::log_buffer::HeadTail;

/// Compressed bytes that are gathered before they are written.
const GATHERED: usize = 64 << 10;

/// The folder and its budget; clones are the same one.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    max: u64,
    used: AtomicU64,
    files: AtomicU64,
}

/// All of a log, gzipped, in a file that goes with this value.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    bytes: u64,
    spool: Spool,
}

/// Where all of a log is of which only the ends were kept.
#[derive(Clone, Debug, Default)]
pub enum Whole {
    /// Nowhere: nothing was left out, or nobody wants it.
    #[default]
    Nowhere,
    /// On this machine.
    Spooled(Arc<Spooled>),
    /// Nowhere, for this reason.
    Failed(String),
    /// In the object store.
    Stored(WholeLog),
}

/// Takes a log to a spool from the moment on where not all of it is kept in memory.
#[derive(Debug)]
pub struct Overflow(State);

#[derive(Debug)]
enum State {
    Unwanted,
    Waiting(Spool),
    Writing(Box<Writer>),
    Failed(String),
}

#[derive(Debug)]
struct Writer {
    encoder: GzEncoder<Vec<u8>>,
    file: File,
    spooled: Spooled,
}

impl Spool {
    /// Empties the folder, or makes it; at most `max` bytes are used of it.
    ///
    /// # Errors
    /// Where it cannot be written to.
    pub fn open(folder: &Path, max: u64) -> io::Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(folder)?;
        let probe = folder.join("probe");
        std::fs::write(&probe, b"")?;
        std::fs::remove_file(&probe)?;
        Ok(Self(Arc::new(Shared {
            folder: folder.to_owned(),
            max,
            used: AtomicU64::new(0),
            files: AtomicU64::new(0),
        })))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Bytes that are used.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Spools a log that is all in memory.
    pub async fn take(&self, bytes: &[u8]) -> Whole {
        let mut overflow = Overflow(State::Unwanted);
        overflow.0 = self.begin(&[bytes]).await;
        overflow.finish().await
    }

    async fn begin(&self, before: &[&[u8]]) -> State {
        match self.try_begin(before).await {
            Ok(writer) => State::Writing(Box::new(writer)),
            Err(why) => State::Failed(why),
        }
    }

    async fn try_begin(&self, before: &[&[u8]]) -> Result<Writer, String> {
        let name = format!("{}.log.gz", self.0.files.fetch_add(1, Ordering::Relaxed));
        let path = self.0.folder.join(name);
        let file = File::create_new(&path).await.map_err(|error| unwritable(&error))?;
        let spooled = Spooled { path, bytes: 0, spool: self.clone() };
        let encoder = GzEncoder::new(Vec::with_capacity(GATHERED), Compression::fast());
        let mut writer = Writer { encoder, file, spooled };
        for piece in before {
            writer.write(piece).await?;
        }
        Ok(writer)
    }

    /// Takes so many more bytes of the budget; one log may have half of it.
    fn charge(&self, bytes: u64, of_log: u64) -> Result<(), String> {
        let Shared { max, used, .. } = &*self.0;
        if of_log + bytes > max / 2 {
            return Err(format!("one log may take half of the spool's {max} bytes, and this one takes more"));
        }
        let more = |used: u64| (used + bytes <= *max).then_some(used + bytes);
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|used| format!("the spool was full: {used} of {max} bytes were used"))
    }
}

impl Spooled {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "a spooled log stays until the next start: {error}");
        }
        self.spool.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl PartialEq for Whole {
    /// A spooled log equals only itself.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nowhere, Self::Nowhere) => true,
            (Self::Spooled(one), Self::Spooled(two)) => Arc::ptr_eq(one, two),
            (Self::Failed(one), Self::Failed(two)) => one == two,
            (Self::Stored(one), Self::Stored(two)) => one == two,
            _ => false,
        }
    }
}

impl Eq for Whole {}

impl Overflow {
    /// Into this spool, where there is one.
    pub fn into(spool: Option<&Spool>) -> Self {
        Self(spool.cloned().map_or(State::Unwanted, State::Waiting))
    }

    /// To be called with each piece of a log, before `kept` takes it in.
    pub async fn pass(&mut self, kept: &HeadTail, piece: &[u8]) {
        match &mut self.0 {
            State::Waiting(spool) if kept.overflows(piece.len()) => {
                let [head, tail] = kept.so_far();
                self.0 = spool.begin(&[head, tail, piece]).await;
            }
            State::Writing(writer) => {
                if let Err(why) = writer.write(piece).await {
                    self.0 = State::Failed(why);
                }
            }
            State::Unwanted | State::Waiting(_) | State::Failed(_) => {}
        }
    }

    /// The end of the log.
    pub async fn finish(self) -> Whole {
        match self.0 {
            State::Unwanted | State::Waiting(_) => Whole::Nowhere,
            State::Failed(why) => Whole::Failed(why),
            State::Writing(writer) => match writer.finish().await {
                Ok(spooled) => Whole::Spooled(Arc::new(spooled)),
                Err(why) => Whole::Failed(why),
            },
        }
    }
}

impl Writer {
    async fn write(&mut self, piece: &[u8]) -> Result<(), String> {
        // A log can come in one piece, too; what is compressed at a time holds up other tasks.
        for piece in piece.chunks(GATHERED) {
            // Writing into memory does not fail.
            self.encoder.write_all(piece).map_err(|error| unwritable(&error))?;
            if self.encoder.get_ref().len() >= GATHERED {
                let gathered = std::mem::replace(self.encoder.get_mut(), Vec::with_capacity(GATHERED));
                self.put(&gathered).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), String> {
        let more = bytes.len() as u64;
        self.spooled.spool.charge(more, self.spooled.bytes)?;
        self.spooled.bytes += more;
        self.file.write_all(bytes).await.map_err(|error| unwritable(&error))
    }

    async fn finish(mut self) -> Result<Spooled, String> {
        self.encoder.try_finish().map_err(|error| unwritable(&error))?;
        let rest = std::mem::take(self.encoder.get_mut());
        self.put(&rest).await?;
        // Only then are all writes known to have gone well.
        self.file.flush().await.map_err(|error| unwritable(&error))?;
        Ok(self.spooled)
    }
}

fn unwritable(error: &io::Error) -> String {
    format!("it could not be spooled: {error}")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn unzipped(whole: &Whole) -> Vec<u8> {
        let Whole::Spooled(spooled) = whole else { panic!("{whole:?}") };
        let file = std::fs::File::open(spooled.path()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), spooled.bytes());
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut out).unwrap();
        out
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However a log is cut into pieces, and whenever room runs out: what is not kept whole is spooled whole.
        #[test]
        fn what_is_cut_is_spooled_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            max in 0usize..64,
            frozen in prop::option::of((0usize..12, 0usize..8)),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let spool = Spool::open(folder.path(), 1 << 20).unwrap();
            let whole: Vec<u8> = pieces.concat();
            let (kept, spooled) = runtime.block_on(async {
                let mut kept = HeadTail::new(max);
                let mut overflow = Overflow::into(Some(&spool));
                for (n, piece) in pieces.iter().enumerate() {
                    if let Some((_, tail)) = frozen.filter(|(at, _)| *at == n) {
                        kept.freeze(tail);
                    }
                    overflow.pass(&kept, piece).await;
                    kept.push(piece);
                }
                (kept.finish(), overflow.finish().await)
            });
            if kept.left_out() == 0 {
                prop_assert_eq!(&kept.head, &whole);
                prop_assert_eq!(&spooled, &Whole::Nowhere);
            } else {
                prop_assert_eq!(unzipped(&spooled), whole);
            }
            drop(spooled);
            prop_assert_eq!((files(folder.path()), spool.used()), (0, 0), "nothing stays behind");
        }
    }

    #[tokio::test]
    async fn a_full_spool_takes_no_more_and_frees_what_is_dropped() {
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
        let Whole::Failed(why) = spool.take(&noise.repeat(2)).await else { panic!("it is more than half") };
        assert!(why.contains("half"), "{why}");
        let first = spool.take(&noise).await;
        assert_eq!(unzipped(&first), noise);
        let _second = spool.take(&noise).await;
        let Whole::Failed(why) = spool.take(&noise).await else { panic!("there was no room for it") };
        assert!(why.contains("full"), "{why}");
        assert_eq!(files(folder.path()), 2, "what failed left nothing");
        drop(first);
        assert!(matches!(spool.take(&noise).await, Whole::Spooled(_)));
    }

    #[tokio::test]
    async fn what_a_predecessor_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("7.log.gz"), "cut").unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(files(folder.path()), 0);
        assert_eq!(unzipped(&spool.take(b"").await), b"");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Spool::open(&file, 1).is_err(), "not a folder");
    }
}
