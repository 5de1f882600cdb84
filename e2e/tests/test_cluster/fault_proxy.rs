//! The fault proxy: the effect of each fault on the API server and on the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use job_handler_e2e::net::fault_proxy::{ProxyFault, Rule};
use job_handler_e2e::{Cluster, FaultProxy};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{PostParams, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::WatchEvent;

const SOON: Duration = Duration::from_secs(60);

async fn client_through(cluster: &Cluster, proxy: &FaultProxy, namespace: &str) -> kube::Client {
    let token = cluster.kubectl(&["create", "token", "default", "-n", namespace]).await.unwrap();
    let edit = format!("--serviceaccount={namespace}:default");
    let bind = ["create", "rolebinding", "edit", "--clusterrole=edit", &edit, "-n", namespace];
    cluster.kubectl(&bind).await.unwrap();
    let mut direct = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    direct.auth_infos[0].auth_info =
        serde_json::from_value(serde_json::json!({"token": token.trim()})).unwrap();
    let text = proxy.kubeconfig(&serde_json::to_string(&direct).unwrap()).unwrap();
    let config = Kubeconfig::from_yaml(&text).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    config.read_timeout = None;
    kube::Client::try_from(config).unwrap()
}

fn map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map
}

#[tokio::test]
async fn each_fault_is_injected_as_configured() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("proxy").await.unwrap();
    let proxy = FaultProxy::start(cluster.config()).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client_through(cluster, &proxy, &namespace).await, &namespace);
    let direct: Api<ConfigMap> = Api::namespaced(cluster.client(), &namespace);
    let create = async |name: &str| maps.create(&PostParams::default(), &map(name)).await;
    let exists = async |name: &str| direct.get_opt(name).await.unwrap().is_some();

    create("plain").await.unwrap();
    assert!(exists("plain").await);

    let hooked = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&hooked);
    for (name, fault, stored, code) in [
        ("conflict", ProxyFault::Refuse(409), false, Some(409)),
        (
            "broken",
            ProxyFault::RefuseWith(500, "etcdserver: mvcc: database space exceeded".into()),
            false,
            Some(500),
        ),
        ("disconnect", ProxyFault::Disconnect, false, None),
        ("after-effect", ProxyFault::DisconnectAfter, true, None),
        ("hooked", ProxyFault::callback(move |_| hook.store(true, Ordering::SeqCst)), true, None),
    ] {
        let faults = proxy.add(Rule::new(fault).writes().name_prefix(name).times(1));
        let answer = create(name).await;
        match (&answer, code) {
            (Err(kube::Error::Api(status)), Some(code)) => assert_eq!(status.code, code),
            (Err(kube::Error::Api(_)) | Ok(_), _) | (Err(_), Some(_)) => panic!("{name}: {answer:?}"),
            (Err(_), None) => {}
        }
        assert_eq!((exists(name).await, faults.count()), (stored, 1), "{name}");
        // The rule applied once and no longer applies.
        assert_eq!(create(name).await.is_ok(), !stored, "{name}");
    }
    assert!(hooked.load(Ordering::SeqCst));

    // The proxy never answers, but the call takes effect.
    let faults = proxy.add(Rule::new(ProxyFault::Timeout).name_prefix("timeout"));
    let mut call = Box::pin(create("timeout"));
    let done = job_handler_e2e::wait_for(SOON, "the call to take effect", || async {
        if exists("timeout").await { Ok(()) } else { Err("not yet") }
    });
    tokio::select! {
        done = done => done.unwrap(),
        answer = &mut call => panic!("{answer:?}"),
    }
    assert!(futures::poll!(&mut call).is_pending());
    assert_eq!(faults.count(), 1);
    // The proxy records a write after the answer, which is after others can see the object. The caller must still wait.
    let recorded = job_handler_e2e::wait_for(SOON, "the call to be recorded", || async {
        let is_timeout = |write: &job_handler_e2e::net::fault_proxy::RecordedWrite| {
            write.call.name.as_deref() == Some("timeout")
        };
        proxy.writes().into_iter().find(is_timeout).ok_or("not yet")
    });
    let write = recorded.await.unwrap();
    assert_eq!((write.answer, write.faulty), (Some(201), true));
    drop(call);

    // Streams are forwarded without buffering.
    proxy.clear();
    let mut watch = Box::pin(maps.watch(&WatchParams::default(), "0").await.unwrap());
    create("later").await.unwrap();
    let seen = tokio::time::timeout(SOON, async {
        while let Some(event) = watch.next().await {
            if matches!(event.unwrap(), WatchEvent::Added(map) if map.metadata.name.as_deref() == Some("later"))
            {
                return true;
            }
        }
        false
    });
    assert!(seen.await.unwrap());
}
