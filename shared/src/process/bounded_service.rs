//! Serves each connection in a place of the [`ConnectionTable`], from the first packet on.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use actix_service::{Service, ServiceFactory};
use actix_web::rt::net::TcpStream;
use futures::future::LocalBoxFuture;

use crate::process::connections::ConnectionTable;

/// Makes the service of each worker.
pub struct BoundedFactory<F> {
    /// Makes what serves a connection, TLS included.
    pub inner: F,
    /// The connections of all workers.
    pub connections: ConnectionTable,
}

/// Serves connections.
pub struct BoundedService<S> {
    inner: Rc<S>,
    connections: ConnectionTable,
}

impl<F> ServiceFactory<TcpStream> for BoundedFactory<F>
where
    F: ServiceFactory<TcpStream, Config = (), Response = ()>,
    F::Service: 'static,
    F::Future: 'static,
    <F::Service as Service<TcpStream>>::Future: 'static,
    F::Error: 'static,
    F::InitError: 'static,
{
    type Response = ();
    type Error = F::Error;
    type Config = ();
    type Service = BoundedService<F::Service>;
    type InitError = F::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, Self::InitError>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let (inner, connections) = (self.inner.new_service(()), self.connections.clone());
        Box::pin(async move { Ok(BoundedService { inner: Rc::new(inner.await?), connections }) })
    }
}

impl<S> Service<TcpStream> for BoundedService<S>
where
    S: Service<TcpStream, Response = ()> + 'static,
    S::Future: 'static,
    S::Error: 'static,
{
    type Response = ();
    type Error = S::Error;
    type Future = LocalBoxFuture<'static, Result<(), S::Error>>;

    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // The table is the bound. TLS has another, of 256 handshakes per worker, which `call` does not check: the silent
        // connections of one address could use it up, and no other one of this worker would get to the table.
        Poll::Ready(Ok(()))
    }

    fn call(&self, stream: TcpStream) -> Self::Future {
        let (inner, connections) = (self.inner.clone(), self.connections.clone());
        Box::pin(async move {
            let Ok(peer) = stream.peer_addr() else { return Ok(()) };
            // Without a place the stream is dropped, which closes it.
            let Some(place) = connections.place(peer).await else { return Ok(()) };
            tokio::select! {
                ended = inner.call(stream) => ended,
                () = place.must_close() => Ok(()),
            }
        })
    }
}
