//! Runs the kubectl plugin on an in-memory apiserver.

use clap::Parser;
use job_handler_plugin::{PluginCli, ResultSource, run_on};
use job_handler_shared::testing::apiserver::Apiserver;

/// What a command printed.
pub(crate) struct PrintedOutput {
    pub(crate) out: Vec<u8>,
    pub(crate) notes: Vec<u8>,
    pub(crate) error: Option<String>,
}

/// Runs a command on the results of namespace `ci`.
pub(crate) async fn run(apiserver: &Apiserver, words: &[&str]) -> PrintedOutput {
    let cli = PluginCli::try_parse_from([&["kubectl-job_results"], words].concat()).unwrap();
    let source = ResultSource::new(apiserver.client(), Some("ci".to_owned()), None);
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let ended = run_on(&source, &cli, &mut out, &mut notes).await;
    PrintedOutput { out, notes, error: ended.err().map(|error| error.to_string()) }
}
