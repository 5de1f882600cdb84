//! Connections, sizes and texts have bounds.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use serde_json::json;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use super::super::fixtures::{exclusive_scenario, job, refusal, scenario};

/// Other addresses of this machine than the apiserver's.
const STRANGERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4)];
/// More than a webhook holds in all.
const CONNECTIONS: usize = 900;

async fn connect_from(address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// Holds as many connections as it can. A stranger whose connections are closed opens others.
async fn hold_connections(port: u16) {
    let mut held = VecDeque::new();
    for address in STRANGERS.iter().cycle() {
        match connect_from(*address, port).await {
            Ok(stream) => held.push_back(stream),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        if held.len() > CONNECTIONS {
            held.pop_front();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[test]
fn a_stranger_that_holds_connections_keeps_no_review_out() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("connections").await.unwrap();
        let limit = json!({"limits": [{"name": "few", "maxActiveJobs": 3}]});
        fixture.apply_policy(&ns, "few", limit).await;
        let port = fixture.pair.webhook(0).port();
        let (stop, stopped) = oneshot::channel::<()>();
        let flood = tokio::spawn(async move {
            tokio::select! { () = hold_connections(port) => {}, _ = stopped => {} }
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        for n in 0..3 {
            fixture.create(&ns, &job(&format!("j{n}"), &[], &[("run", "60s")])).await.unwrap();
        }
        let (code, message) = refusal(fixture.create(&ns, &job("beyond", &[], &[])).await);
        assert!(code == 403 && message.contains("3 active jobs"), "{code} {message}");
        stop.send(()).unwrap();
        flood.await.unwrap();
        fixture.pair.webhook(0).process().ensure_running().unwrap();
    });
}

#[test]
fn what_a_container_says_drives_no_terminal() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("texts").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
        let said = "\u{1b}[2J\u{1b}]0;owned\u{7}all \u{202e}doog\u{2069} \u{200b}done";
        let simulation = [("run", "200ms"), ("exit-code", "3"), ("termination-message", said)];
        let mut failing = job("says", &[], &simulation);
        failing["spec"]["backoffLimit"] = json!(0);
        fixture.create(&ns, &failing).await.unwrap();
        fixture.wait_result(&ns, "says").await;
        let events: Api<Event> = Api::namespaced(fixture.client(), &ns);
        let note = fixture
            .wait("the Event of the result", || async {
                let all = events.list(&Default::default()).await.map_err(|error| error.to_string())?;
                let ours =
                    all.items.into_iter().find(|event| event.reason.as_deref() == Some("JobProcessing"));
                ours.and_then(|event| event.note).ok_or_else(|| "none yet".to_owned())
            })
            .await;
        assert!(note.contains("\\u001b[2J") && note.contains("\\u202edoog"), "{note}");
        let unsafe_characters: Vec<char> =
            note.chars().filter(|c| job_handler_shared::text::is_unsafe(*c)).collect();
        assert!(unsafe_characters.is_empty(), "{unsafe_characters:?} in {note}");
    });
}
