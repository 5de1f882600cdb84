//! `job-handler-certs`: makes the CA by hand and shows how certificates stand.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Parser, Subcommand};
use job_handler_certs::{publish::Publisher, rfc3339, secret::CaSecret};
use job_handler_shared::{keys, kube::client, process::telemetry};
use time::OffsetDateTime;

/// Makes the CA of job-handler by hand and shows how certificates stand. The webhook does all of this by itself; this
/// program is for looking, and for clusters where the webhook may not create Secrets.
#[derive(Debug, Parser)]
#[command(name = "job-handler-certs", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the CA's Secret where there is none, and prints the caBundle (base64) on stdout.
    Bootstrap {
        #[command(flatten)]
        place: Place,
        /// Also write the caBundle into the MutatingWebhookConfiguration and read it back.
        #[arg(long)]
        publish: bool,
    },
    /// Shows the CA's validity and whether it is published; exit code 1 where something is not in order.
    Show {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args, Debug)]
struct Place {
    /// Namespace of the pair.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    namespace: String,
    /// Name of the CA's Secret.
    #[arg(long, default_value = keys::CA_SECRET)]
    secret: String,
    /// MutatingWebhookConfiguration that gets the caBundle.
    #[arg(long, default_value = keys::MUTATING_CONFIGURATION)]
    configuration: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::init_logs(telemetry::LogFormat::Text);
    match run(arguments.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Our errors tell their sources themselves.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    // The first thing of all: whoever builds a TLS client later finds one provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed in this process");
    }
    let client = client::build("job-handler-certs", env!("CARGO_PKG_VERSION")).await?;
    let now = OffsetDateTime::now_utc();
    let place = match &command {
        Command::Bootstrap { place, .. } | Command::Show { place } => place,
    };
    let secret = CaSecret::new(client.clone(), &place.namespace, &place.secret);
    let publisher = Publisher::new(client, &place.configuration);
    match &command {
        Command::Bootstrap { publish, .. } => {
            let ca = secret.ensure(None, now).await?;
            if *publish {
                let wrote = publisher.publish(ca.bundle(), || {}).await?;
                let done = if wrote { "published in" } else { "was published already in" };
                eprintln!("{done} MutatingWebhookConfiguration {}", place.configuration);
            }
            println!("{}", STANDARD.encode(ca.bundle()));
        }
        Command::Show { .. } => {
            let ca = secret.read(now).await?.with_context(|| {
                format!(
                    "Secret {}/{} does not exist; the webhook makes it when it starts, or: job-handler-certs bootstrap",
                    place.namespace, place.secret
                )
            })?;
            let (from, until) = ca.validity();
            println!("CA         Secret {}/{}", place.namespace, place.secret);
            let days = (until - now).whole_days();
            println!("valid      {} until {} ({days} days left)", rfc3339(from), rfc3339(until));
            println!("trusted    {} CA(s) in the bundle", ca.bundle().matches("BEGIN CERTIFICATE").count());
            if !publisher.is_published(ca.bundle()).await? {
                bail!(
                    "MutatingWebhookConfiguration {} has another caBundle; a running webhook puts it right, \
                     or: job-handler-certs bootstrap --publish",
                    place.configuration
                );
            }
            println!("published  in MutatingWebhookConfiguration {}", place.configuration);
        }
    }
    Ok(())
}
