//! The load balancer skips dead backends and uses new ones.

use std::net::Ipv4Addr;
use std::time::Duration;

use job_handler_e2e::net::load_balancer::{Backend, LoadBalancer};
use job_handler_e2e::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(60);

/// A server that sends its name on each connection, until it is aborted.
async fn server(name: &'static str) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The balancer's health checks close the connection without data.
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
    (port, task)
}

async fn read_name(balancer: &LoadBalancer) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, balancer.port())).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn connections_are_distributed_round_robin() {
    let ((a, _a), (b, _b)) = (server("a").await, server("b").await);
    let balancer = LoadBalancer::start(Ipv4Addr::LOCALHOST, &[Backend::on(a), Backend::on(b)]).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(read_name(&balancer).await);
    }
    assert_eq!(seen, ["a", "b", "a", "b"]);
    assert_eq!(balancer.connections(), [2, 2]);
}

#[tokio::test]
async fn a_dead_backend_loses_no_connection_and_is_used_again_after_its_restart() {
    let ((a, dying), (b, _b)) = (server("a").await, server("b").await);
    let balancer = LoadBalancer::start(Ipv4Addr::LOCALHOST, &[Backend::on(a), Backend::on(b)]).unwrap();
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    for _ in 0..10 {
        assert_eq!(read_name(&balancer).await, "b");
    }
    let again = TcpListener::bind((Ipv4Addr::LOCALHOST, a)).await.unwrap();
    let _again = tokio::spawn(async move { while again.accept().await.is_ok() {} });
    let back = async || if balancer.ready() == [true, true] { Ok(()) } else { Err("not ready") };
    wait_for(SOON, "the backend to be ready again", back).await.unwrap();
}

#[tokio::test]
async fn backends_can_be_replaced() {
    let ((a, _a), (b, _b)) = (server("a").await, server("b").await);
    let balancer = LoadBalancer::start(Ipv4Addr::LOCALHOST, &[Backend::on(a)]).unwrap();
    assert_eq!(read_name(&balancer).await, "a");
    balancer.set_backends(&[Backend::on(b)]);
    assert_eq!(read_name(&balancer).await, "b");
    balancer.set_backends(&[]);
    assert_eq!(read_name(&balancer).await, "", "without a backend the connection is closed");
}

#[tokio::test]
async fn a_backend_that_is_not_ready_gets_no_connection() {
    let ((a, _a), (b, _b)) = (server("a").await, server("b").await);
    let (unready, _unready) = server("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
    let admin = Some((Ipv4Addr::LOCALHOST, unready).into());
    let balancer =
        LoadBalancer::start(Ipv4Addr::LOCALHOST, &[Backend { admin, ..Backend::on(a) }, Backend::on(b)])
            .unwrap();
    let noticed = async || if balancer.ready() == [false, true] { Ok(()) } else { Err("still ready") };
    wait_for(SOON, "the balancer to notice", noticed).await.unwrap();
    assert_eq!((read_name(&balancer).await, read_name(&balancer).await), ("b".to_owned(), "b".to_owned()));
}

#[tokio::test]
async fn open_connections_can_be_closed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let backend = Backend::on(listener.local_addr().unwrap().port());
    let balancer = LoadBalancer::start(Ipv4Addr::LOCALHOST, &[backend]).unwrap();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, balancer.port())).await.unwrap();
    stream.write_all(b"?").await.unwrap();
    // The balancer's health checks connect as well, but send nothing.
    let mut accepted = loop {
        let (mut server, _) = listener.accept().await.unwrap();
        if server.read_u8().await.is_ok() {
            break server;
        }
    };
    balancer.close_connections();
    let ends = tokio::join!(accepted.read_u8(), stream.read_u8());
    assert!(ends.0.is_err() && ends.1.is_err(), "{ends:?}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, balancer.port())).await.is_ok());
}
