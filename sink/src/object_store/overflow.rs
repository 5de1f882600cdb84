//! Spools a log from the moment on when it no longer fits in memory: a log within its budget costs nothing here.

use crate::object_store::spool::{FullLog, Spool, SpoolWriter};

/// The overflow of one log.
#[derive(Debug)]
pub(crate) struct Overflow(OverflowState);

#[derive(Debug)]
enum OverflowState {
    Disabled,
    FitsInMemory(Spool),
    Writing(Box<SpoolWriter>),
    Failed(String),
}

impl Overflow {
    /// Uses this spool, if there is one.
    pub(crate) fn new(spool: Option<&Spool>) -> Self {
        Self(spool.cloned().map_or(OverflowState::Disabled, OverflowState::FitsInMemory))
    }

    /// Takes each piece of a log in order, before the buffer does. `before_overflow` is the log so far, if the buffer has to
    /// leave out something of this piece for the first time.
    pub(crate) async fn write_piece(&mut self, before_overflow: Option<[&[u8]; 2]>, piece: &[u8]) {
        match (&mut self.0, before_overflow) {
            (OverflowState::FitsInMemory(spool), Some([head, tail])) => {
                self.0 = match SpoolWriter::create(spool, &[head, tail, piece]).await {
                    Ok(writer) => OverflowState::Writing(Box::new(writer)),
                    Err(reason) => OverflowState::Failed(reason),
                };
            }
            (OverflowState::Writing(writer), _) => {
                if let Err(reason) = writer.write(piece).await {
                    self.0 = OverflowState::Failed(reason);
                }
            }
            _ => {}
        }
    }

    /// Ends the log.
    pub(crate) async fn finish(self) -> FullLog {
        match self.0 {
            OverflowState::Disabled | OverflowState::FitsInMemory(_) => FullLog::Absent,
            OverflowState::Failed(reason) => FullLog::Failed(reason),
            OverflowState::Writing(writer) => writer.finish().await,
        }
    }
}
