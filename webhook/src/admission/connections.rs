//! Bounds how many connections are open, in all and per address, and how long one may be silent.
//!
//! Anybody in the cluster can connect, and a connection takes up to 170 KiB before a review is read from it (an unfinished
//! head, TLS). The bounds hold from the first packet on, before TLS. A new connection beyond the total takes the place of
//! the longest silent one of the address that holds most, so that no address shuts out the others. One that exceeds the
//! share of its address waits for a moment: an apiserver may send many reviews at once.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most connections of a process: about 85 MiB if all of them are hostile.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// Most connections of one address. An apiserver has one per review in flight, and may share its address with others.
const MAX_PER_ADDRESS: usize = MAX_CONNECTIONS / 2;
/// Most connections that wait for a place. Nothing is read from them, so that they take no memory to speak of.
pub(super) const MAX_WAITING: usize = 1024;
/// Longest wait for a place.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How often a waiting connection looks for a place.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time from the head of a request to that of the next one: the slowest review, then the time that an apiserver
/// keeps an idle connection. HTTP libraries time only the first head of a connection.
const MAX_SILENCE: Duration = Duration::from_secs(180);

/// The open connections. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionTable(Arc<Mutex<Connections>>);

#[derive(Debug, Default)]
struct Connections {
    open: HashMap<SocketAddr, ConnectionState>,
    waiting: usize,
}

#[derive(Debug)]
struct ConnectionState {
    /// When the last head arrived, or the connection.
    last_request: Instant,
    evicted: CancellationToken,
}

/// The place of an open connection; free again when dropped.
#[derive(Debug)]
pub(super) struct OpenConnection {
    table: ConnectionTable,
    peer: SocketAddr,
    evicted: CancellationToken,
}

impl ConnectionTable {
    /// Waits for a place for a new connection; none if its address has too many for too long.
    pub(super) async fn place(&self, peer: SocketAddr) -> Option<OpenConnection> {
        if let Some(place) = self.open(peer) {
            return Some(place);
        }
        let _waits = WaitingConnection::new(self)?;
        let found = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                if let Some(place) = self.open(peer) {
                    return place;
                }
            }
        };
        let found = tokio::time::timeout(MAX_WAIT, found).await.ok();
        if found.is_none() {
            tracing::debug!(%peer, "closed a connection: too many of its address are open");
        }
        found
    }

    fn open(&self, peer: SocketAddr) -> Option<OpenConnection> {
        let mut connections = self.0.lock();
        let open = &mut connections.open;
        let own = open.keys().filter(|other| other.ip() == peer.ip()).count();
        if own >= MAX_PER_ADDRESS || (open.len() >= MAX_CONNECTIONS && !evict_for(peer.ip(), open)) {
            return None;
        }
        let evicted = CancellationToken::new();
        open.insert(peer, ConnectionState { last_request: Instant::now(), evicted: evicted.clone() });
        Some(OpenConnection { table: self.clone(), peer, evicted })
    }

    /// The head of a request arrived on this connection.
    pub(super) fn request_began(&self, peer: SocketAddr) {
        if let Some(connection) = self.0.lock().open.get_mut(&peer) {
            connection.last_request = Instant::now();
        }
    }

    /// How long the connection may stay silent; none if it was for too long.
    fn silence_left(&self, peer: SocketAddr) -> Option<Duration> {
        let silent = self.0.lock().open.get(&peer)?.last_request.elapsed();
        MAX_SILENCE.checked_sub(silent).filter(|left| !left.is_zero())
    }
}

impl OpenConnection {
    /// Returns when the connection has to be closed: it is silent, or another address needs its place.
    pub(super) async fn must_close(&self) {
        let silent = async {
            while let Some(left) = self.table.silence_left(self.peer) {
                tokio::time::sleep(left).await;
            }
        };
        // None: it was evicted.
        let _: Option<()> = self.evicted.run_until_cancelled(silent).await;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        // An evicted one has left the table already.
        if !self.evicted.is_cancelled() {
            self.table.0.lock().open.remove(&self.peer);
        }
    }
}

/// A connection that waits for a place.
struct WaitingConnection<'a>(&'a ConnectionTable);

impl<'a> WaitingConnection<'a> {
    fn new(table: &'a ConnectionTable) -> Option<Self> {
        let mut connections = table.0.lock();
        if connections.waiting >= MAX_WAITING {
            return None;
        }
        connections.waiting += 1;
        Some(Self(table))
    }
}

impl Drop for WaitingConnection<'_> {
    fn drop(&mut self) {
        self.0.0.lock().waiting -= 1;
    }
}

/// Frees the place of another address that holds more connections than `address`. Returns whether there is one.
fn evict_for(address: IpAddr, open: &mut HashMap<SocketAddr, ConnectionState>) -> bool {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for peer in open.keys() {
        *counts.entry(peer.ip()).or_default() += 1;
    }
    let own = counts.get(&address).copied().unwrap_or_default();
    let Some((largest, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return false };
    if count <= own {
        return false;
    }
    let of_largest = open.iter().filter(|(peer, _)| peer.ip() == largest);
    let Some(silent) = of_largest.min_by_key(|(_, state)| state.last_request).map(|(peer, _)| *peer) else {
        return false;
    };
    open.remove(&silent).into_iter().for_each(|state| state.evicted.cancel());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: u8, port: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], u16::try_from(port + 1).unwrap()))
    }

    fn open(table: &ConnectionTable, host: u8, count: usize) -> Vec<OpenConnection> {
        (0..count).map(|port| table.open(peer(host, port)).unwrap()).collect()
    }

    #[tokio::test]
    async fn an_address_has_half_of_the_places_and_gets_them_back() {
        let table = ConnectionTable::default();
        let mut held = open(&table, 1, MAX_PER_ADDRESS);
        assert!(table.open(peer(1, 60_000)).is_none());
        assert!(table.open(peer(2, 1)).is_some());
        held.pop();
        assert!(table.open(peer(1, 60_000)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_makes_room_at_the_cost_of_the_largest_holder() {
        let table = ConnectionTable::default();
        let first = open(&table, 1, MAX_PER_ADDRESS);
        let second = open(&table, 2, MAX_PER_ADDRESS - 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        for connection in first.iter().filter(|connection| connection.peer != peer(1, 7)) {
            table.request_began(connection.peer);
        }
        let apiserver = open(&table, 3, 2);
        assert_eq!(table.0.lock().open.len(), MAX_CONNECTIONS);
        let evicted: Vec<_> =
            first.iter().chain(&second).filter(|connection| connection.evicted.is_cancelled()).collect();
        assert_eq!(evicted.iter().map(|connection| connection.peer).collect::<Vec<_>>(), [peer(1, 7)]);
        evicted[0].must_close().await;
        drop((first, second, apiserver));
        assert!(table.0.lock().open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_beyond_the_share_of_its_address_waits_for_a_moment() {
        let table = ConnectionTable::default();
        let mut held = open(&table, 1, MAX_PER_ADDRESS);
        let begun = Instant::now();
        assert!(table.place(peer(1, 60_000)).await.is_none());
        assert!(begun.elapsed() >= MAX_WAIT);
        let leaves = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            held.pop();
        };
        let (place, ()) = tokio::join!(table.place(peer(1, 60_000)), leaves);
        assert!(place.is_some());
        assert_eq!(table.0.lock().waiting, 0);
        table.0.lock().waiting = MAX_WAITING;
        let begun = Instant::now();
        assert!(table.place(peer(1, 60_001)).await.is_none() && begun.elapsed().is_zero());
        table.0.lock().waiting = 0;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed() {
        let table = ConnectionTable::default();
        let connection = table.open(peer(1, 1)).unwrap();
        let begun = Instant::now();
        let closes = async {
            connection.must_close().await;
            begun.elapsed()
        };
        let request = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            table.request_began(peer(1, 1));
        };
        let (lived, ()) = tokio::join!(closes, request);
        assert_eq!(lived.as_secs(), MAX_SILENCE.as_secs() + 100);
    }
}
