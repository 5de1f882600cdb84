//! A server on its own thread, so that it outlives the runtime of the test that started it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use crate::harness::error::{Error, Result};

/// A running server. It ends with its connections when it is dropped.
#[derive(Debug)]
pub(crate) struct BackgroundServer {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundServer {
    /// Starts `serve` with a non-blocking listener on a free port of `on`; `what` names it in errors.
    ///
    /// # Errors
    /// If no port is free.
    pub(crate) fn start<S, F>(on: Ipv4Addr, what: &str, serve: S) -> Result<Self>
    where
        S: FnOnce(TcpListener) -> F + Send + 'static,
        F: Future,
    {
        let starting = || Error::io(format!("starting {what}"));
        let listener = TcpListener::bind((on, 0)).map_err(starting())?;
        listener.set_nonblocking(true).map_err(starting())?;
        let address = listener.local_addr().map_err(starting())?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(starting())?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let thread = std::thread::spawn(move || {
            // Ends when the token is cancelled or `serve` fails; the runtime then drops the connections.
            runtime.block_on(async move {
                let _ = token.run_until_cancelled(serve(listener)).await;
            });
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for BackgroundServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A server that panicked has ended already.
            let _ = thread.join();
        }
    }
}
