//! The commands of `job-handler-certs`.

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use job_handler_certs::{ca::rfc3339, publish::Publisher, secret::CaSecret};
use job_handler_shared::kube::client;
use time::OffsetDateTime;

use crate::args::{CertsCommand, ObjectArgs};

pub(crate) async fn run(command: CertsCommand) -> Result<()> {
    // Before any TLS client is created.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed in this process");
    }
    let client = client::build("job-handler-certs", env!("CARGO_PKG_VERSION")).await?;
    let (CertsCommand::Bootstrap { objects, .. } | CertsCommand::Show { objects }) = &command;
    let secret = CaSecret::new(client.clone(), &objects.namespace, &objects.secret);
    let publisher = Publisher::new(client, &objects.configuration);
    match &command {
        CertsCommand::Bootstrap { objects, publish } => {
            bootstrap(&secret, &publisher, objects, *publish).await
        }
        CertsCommand::Show { objects } => show(&secret, &publisher, objects).await,
    }
}

async fn bootstrap(
    secret: &CaSecret,
    publisher: &Publisher,
    objects: &ObjectArgs,
    publish: bool,
) -> Result<()> {
    let ca = secret.ensure(None, OffsetDateTime::now_utc()).await?;
    if publish {
        let wrote = publisher.publish(ca.bundle(), || {}).await?;
        let done = if wrote { "published in" } else { "already published in" };
        eprintln!("{done} MutatingWebhookConfiguration {}", objects.configuration);
    }
    println!("{}", STANDARD.encode(ca.bundle()));
    Ok(())
}

async fn show(secret: &CaSecret, publisher: &Publisher, objects: &ObjectArgs) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let ObjectArgs { namespace, secret: name, configuration } = objects;
    let ca = secret.read(now).await?.with_context(|| {
        format!(
            "Secret {namespace}/{name} does not exist; the webhook creates it when it starts, or: \
             job-handler-certs bootstrap"
        )
    })?;
    let (from, until) = ca.validity();
    println!("CA         Secret {namespace}/{name}");
    let days = (until - now).whole_days();
    println!("valid      {} until {} ({days} days left)", rfc3339(from), rfc3339(until));
    println!("trusted    {} CA(s) in the bundle", ca.bundle().matches("BEGIN CERTIFICATE").count());
    if !publisher.is_published(ca.bundle()).await? {
        bail!(
            "MutatingWebhookConfiguration {configuration} has another caBundle; a running webhook corrects it, \
             or: job-handler-certs bootstrap --publish"
        );
    }
    println!("published  in MutatingWebhookConfiguration {configuration}");
    Ok(())
}
