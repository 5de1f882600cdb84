//! `logs`: stored logs, verified, filtered and escaped as they stream.

use std::io::{self, Write};

use crate::{
    cli::LogsArgs,
    error::PluginError,
    full_logs,
    log_selector::{LogFilter, LogSelector},
    log_stream,
    result_source::{JobResult, ResultSource},
    terminal::TerminalEscaper,
};

/// # Errors
/// If no log matches, a call fails, or the logs are damaged; what could be read has been written.
pub(crate) async fn run(
    source: &ResultSource,
    result: &JobResult,
    args: &LogsArgs,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), PluginError> {
    let filter =
        LogFilter { container: args.container.as_deref(), pod: args.pod.as_deref(), previous: args.previous };
    full_logs::write_notes(result, filter, notes)?;
    let mut selector = LogSelector::new(result, filter)?;
    let mut escaper = (!args.raw).then(TerminalEscaper::default);
    let mut escaped = Vec::new();
    let faults = {
        let mut write_piece = |piece: &[u8]| -> io::Result<()> {
            let selected = selector.select(piece);
            match &mut escaper {
                Some(escaper) => {
                    escaped.clear();
                    escaper.push(&selected, &mut escaped);
                    out.write_all(&escaped)
                }
                None => out.write_all(&selected),
            }
        };
        log_stream::stream_logs(source, result, &mut write_piece).await?
    };
    if let Some(escaper) = &mut escaper {
        escaped.clear();
        escaper.finish(&mut escaped);
        out.write_all(&escaped)?;
    }
    out.flush()?;
    if faults.is_empty() { Ok(()) } else { Err(PluginError::Damaged(faults)) }
}
