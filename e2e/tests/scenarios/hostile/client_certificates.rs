//! An operator whose apiserver presents a client certificate to webhooks: nobody else can connect.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use job_handler_e2e::{Cluster, ClusterOptions, HttpsClient, Pair, PairOptions, pair::review_path};
use job_handler_shared::keys;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use serde_json::{Value, json};

use super::super::fixtures::{Fixture, annotation, exclusive_scenario_with_own_cluster, job, refusal};

const NAME: &str = "kube-apiserver-admission";

/// Writes a CA and a client certificate of it. Returns the apiserver's argument to present it.
fn write_files(folder: &Path) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let write = |file: &str, content: &str| {
        let path = folder.join(file);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    write("ca.crt", &ca.pem());
    let user = json!({
        "client-certificate": write("client.crt", &certificate.pem()),
        "client-key": write("client.key", &key.serialize_pem()),
    });
    let kubeconfig =
        json!({"apiVersion": "v1", "kind": "Config", "users": [{"name": "*", "user": user}]}).to_string();
    let kubeconfig = write("webhooks.kubeconfig", &kubeconfig);
    let plugin = |name: &str| -> Value {
        let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": kubeconfig});
        json!({"name": name, "configuration": configuration})
    };
    let admission = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
        "plugins": [plugin("MutatingAdmissionWebhook"), plugin("ValidatingAdmissionWebhook")]});
    format!("--admission-control-config-file={}", write("admission.yaml", &admission.to_string()))
}

#[test]
fn only_the_apiserver_with_its_client_certificate_can_connect() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let apiserver_arguments = vec![write_files(folder.path())];
        let options = ClusterOptions { apiserver_arguments, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await.unwrap();
        let ca_file = folder.path().join("ca.crt").display().to_string();
        let webhook_arguments = vec![format!("--client-ca-file={ca_file}"), format!("--client-name={NAME}")];
        // This waits until the apiserver's calls are answered.
        let pair = Pair::install(&cluster, PairOptions { webhook_arguments, ..PairOptions::default() });
        let fixture = Fixture { pair: pair.await.unwrap(), cluster };
        let ns = fixture.cluster.namespace("client-certificate").await.unwrap();
        let spec = json!({
            "stamp": {"activeDeadlineSeconds": {"default": 600}}, "limits": [{"name": "few", "maxActiveJobs": 1}],
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        let first = fixture.create(&ns, &job("one", &[], &[("end", "Hang")])).await.unwrap();
        assert!(annotation(&first, keys::STAMPED).contains("activeDeadlineSeconds"));
        assert_eq!(refusal(fixture.create(&ns, &job("two", &[], &[])).await).0, 403);
        // Not even with a valid path.
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), keys::NAMESPACE);
        let ca = secrets.get(keys::CA_SECRET).await.unwrap().data.unwrap()["ca.crt"].0.clone();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fixture.pair.webhook(0).port()));
        let stranger = HttpsClient::new(ca, address).unwrap();
        let path = review_path(fixture.client(), keys::VALIDATE_PATH).await.unwrap();
        let answer = stranger.post(&path, "no review").await;
        assert!(answer.is_err(), "{answer:?}");
    });
}
