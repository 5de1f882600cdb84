//! Command line of `job-handler-certs`.

use clap::{Args, Parser, Subcommand};
use job_handler_shared::keys;

/// Creates the CA of job-handler by hand and shows the state of its certificates. The webhook does all of this by itself;
/// this program is for inspection, and for clusters where the webhook may not create Secrets.
#[derive(Debug, Parser)]
#[command(name = "job-handler-certs", version)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    pub(crate) command: CertsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Create the CA's Secret if it does not exist, and print the caBundle (base64) to stdout.
    Bootstrap {
        #[command(flatten)]
        objects: ObjectArgs,
        /// Also write the caBundle into the MutatingWebhookConfiguration and read it back.
        #[arg(long)]
        publish: bool,
    },
    /// Show the CA's validity and whether it is published; exit code 1 if something is wrong.
    Show {
        #[command(flatten)]
        objects: ObjectArgs,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ObjectArgs {
    /// Namespace of job-handler.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    pub(crate) namespace: String,
    /// Name of the CA's Secret.
    #[arg(long, default_value = keys::CA_SECRET)]
    pub(crate) secret: String,
    /// MutatingWebhookConfiguration to publish the CA in.
    #[arg(long, default_value = keys::MUTATING_CONFIGURATION)]
    pub(crate) configuration: String,
}
