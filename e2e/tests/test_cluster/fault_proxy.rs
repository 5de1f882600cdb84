//! The fault proxy: the effect of each fault on the API server, and what the caller sees.

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

async fn through(cluster: &Cluster, proxy: &FaultProxy, namespace: &str) -> kube::Client {
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
    let maps: Api<ConfigMap> = Api::namespaced(through(cluster, &proxy, &namespace).await, &namespace);
    let direct: Api<ConfigMap> = Api::namespaced(cluster.client(), &namespace);
    let create = async |name: &str| maps.create(&PostParams::default(), &map(name)).await;
    let is_there = async |name: &str| direct.get_opt(name).await.unwrap().is_some();

    create("plain").await.unwrap();
    assert!(is_there("plain").await);

    let hooked = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&hooked);
    for (name, fault, there, code) in [
        ("conflict", ProxyFault::Refuse(409), false, Some(409)),
        (
            "broken",
            ProxyFault::RefuseWith(500, "etcdserver: mvcc: database space exceeded".into()),
            false,
            Some(500),
        ),
        ("cut", ProxyFault::Disconnect, false, None),
        ("cut-after", ProxyFault::DisconnectAfter, true, None),
        ("hooked", ProxyFault::callback(move |_| hook.store(true, Ordering::SeqCst)), true, None),
    ] {
        let faults = proxy.add(Rule::new(fault).writes().name_prefix(name).times(1));
        let answer = create(name).await;
        match (&answer, code) {
            (Err(kube::Error::Api(status)), Some(code)) => assert_eq!(status.code, code),
            (Err(kube::Error::Api(_)) | Ok(_), _) | (Err(_), Some(_)) => panic!("{name}: {answer:?}"),
            (Err(_), None) => {}
        }
        assert_eq!((is_there(name).await, faults.count()), (there, 1), "{name}");
        // The rule is used up.
        assert_eq!(create(name).await.is_ok(), !there, "{name}");
    }
    assert!(hooked.load(Ordering::SeqCst));

    // The answer never comes, whatever the caller's patience; what was asked is done.
    let faults = proxy.add(Rule::new(ProxyFault::Timeout).name_prefix("silent"));
    let mut asked = Box::pin(create("silent"));
    let done = job_handler_e2e::wait_for(SOON, "the call to take effect", || async {
        if is_there("silent").await { Ok(()) } else { Err("not yet") }
    });
    tokio::select! {
        done = done => done.unwrap(),
        answer = &mut asked => panic!("{answer:?}"),
    }
    assert!(futures::poll!(&mut asked).is_pending());
    assert_eq!(faults.count(), 1);
    // It is noted once it was answered, which is after others can see it; were the caller gone before, it would not be.
    let noted = job_handler_e2e::wait_for(SOON, "the call to be noted", || async {
        let silent = |write: &job_handler_e2e::net::fault_proxy::RecordedWrite| {
            write.call.name.as_deref() == Some("silent")
        };
        proxy.writes().into_iter().find(silent).ok_or("not yet")
    });
    let seen = noted.await.unwrap();
    assert_eq!((seen.answer, seen.faulty), (Some(201), true));
    drop(asked);

    // Streams are passed on as they come.
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
