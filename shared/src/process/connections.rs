//! Bounds how many connections a server has, in all and per address, and how long one may be silent.
//!
//! Anybody in the cluster can connect, and a connection takes up to 170 KiB before a request is read from it (an unfinished
//! head, TLS). The bounds hold from the first packet on, before TLS. A new connection beyond the total takes the place of
//! the longest silent one of the address that holds most, so that no address shuts out the others: first of those on which
//! no request came yet that counts, as on all of a stranger, never of those whose request is being answered. One that
//! exceeds the share of its address takes the place of one that the address does not use, or waits for a moment, since an
//! apiserver may send many reviews at once.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest wait for a place.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How often a waiting connection looks for a place. Each look goes through the table, and many may wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time from the head of a request to that of the next one: the slowest review, then the time that an apiserver
/// keeps an idle connection. HTTP libraries time only the first head of a connection.
const MAX_SILENCE: Duration = Duration::from_secs(180);

/// How many connections a server has.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionBounds {
    /// Most connections.
    pub total: usize,
    /// Most connections of one address. As many more of it may wait for a place.
    pub per_address: usize,
    /// How long a connection without a request that counts keeps its place if its address needs that for another.
    pub unused: Duration,
}

impl ConnectionBounds {
    /// Most connections that wait for a place. Nothing is read from them, so that they take no memory to speak of.
    const fn waiting(self) -> usize {
        self.total * 2
    }

    /// Most connections that are accepted: those that have a place, and those that wait for one.
    pub const fn accepted(self) -> usize {
        self.total + self.waiting()
    }
}

/// The open connections. Clones share them.
#[derive(Clone)]
pub struct ConnectionTable {
    bounds: ConnectionBounds,
    connections: Arc<Mutex<Connections>>,
    /// Called with the address of each connection that had to make room, or got no place.
    lost: Arc<dyn Fn(IpAddr) + Send + Sync>,
}

#[derive(Debug, Default)]
struct Connections {
    open: HashMap<SocketAddr, ConnectionState>,
    /// The addresses of those that wait for a place.
    waiting: Vec<IpAddr>,
}

impl fmt::Debug for ConnectionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.connections.fmt(f)
    }
}

#[derive(Debug)]
struct ConnectionState {
    /// When the last head arrived, or the connection.
    last_request: Instant,
    use_so_far: ConnectionUse,
    evicted: CancellationToken,
}

/// What a connection was used for. Only those requests count that the server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionUse {
    /// Nothing.
    None,
    /// A request on it is being answered.
    InFlight,
    /// Requests on it were answered.
    Answered,
}

/// A request that is being answered; over when dropped.
#[derive(Debug)]
pub struct RequestInFlight {
    table: ConnectionTable,
    peer: SocketAddr,
}

/// The place of an open connection; free again when dropped.
#[derive(Debug)]
pub struct OpenConnection {
    table: ConnectionTable,
    peer: SocketAddr,
    evicted: CancellationToken,
}

impl ConnectionTable {
    /// An empty table, which calls `lost` with the address of each connection that has to make room, or gets no place.
    pub fn new(bounds: ConnectionBounds, lost: impl Fn(IpAddr) + Send + Sync + 'static) -> Self {
        Self { bounds, connections: Arc::default(), lost: Arc::new(lost) }
    }

    /// Waits for a place for a new connection; none if its address has too many for too long.
    pub async fn place(&self, peer: SocketAddr) -> Option<OpenConnection> {
        let place = self.wait_for_place(peer).await;
        if place.is_none() {
            tracing::debug!(%peer, "closed a connection: too many are open");
            (self.lost)(peer.ip());
        }
        place
    }

    async fn wait_for_place(&self, peer: SocketAddr) -> Option<OpenConnection> {
        if let Some(place) = self.open(peer) {
            return Some(place);
        }
        let _waits = WaitingConnection::new(self, peer.ip())?;
        let found = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                if let Some(place) = self.open(peer) {
                    return place;
                }
            }
        };
        tokio::time::timeout(MAX_WAIT, found).await.ok()
    }

    fn open(&self, peer: SocketAddr) -> Option<OpenConnection> {
        let mut connections = self.connections.lock();
        let open = &mut connections.open;
        let own = open.keys().filter(|other| other.ip() == peer.ip()).count();
        let victim = if own >= self.bounds.per_address {
            Some(evict_unused(peer.ip(), self.bounds.unused, open)?)
        } else if open.len() >= self.bounds.total {
            Some(evict_for(peer.ip(), open)?)
        } else {
            None
        };
        let evicted = CancellationToken::new();
        let state = ConnectionState {
            last_request: Instant::now(),
            use_so_far: ConnectionUse::None,
            evicted: evicted.clone(),
        };
        open.insert(peer, state);
        drop(connections);
        if let Some(victim) = victim {
            (self.lost)(victim.ip());
        }
        Some(OpenConnection { table: self.clone(), peer, evicted })
    }

    /// The head of a request that counts arrived on this connection.
    pub fn request_began(&self, peer: SocketAddr) -> RequestInFlight {
        if let Some(connection) = self.connections.lock().open.get_mut(&peer) {
            connection.last_request = Instant::now();
            connection.use_so_far = ConnectionUse::InFlight;
        }
        RequestInFlight { table: self.clone(), peer }
    }

    /// How long the connection may stay silent; none if it was for too long.
    fn silence_left(&self, peer: SocketAddr) -> Option<Duration> {
        let silent = self.connections.lock().open.get(&peer)?.last_request.elapsed();
        MAX_SILENCE.checked_sub(silent).filter(|left| !left.is_zero())
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        if let Some(connection) = self.table.connections.lock().open.get_mut(&self.peer) {
            connection.use_so_far = ConnectionUse::Answered;
        }
    }
}

impl OpenConnection {
    /// Returns when the connection has to be closed: it is silent, or another address needs its place.
    pub async fn must_close(&self) {
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
            self.table.connections.lock().open.remove(&self.peer);
        }
    }
}

/// A connection that waits for a place.
struct WaitingConnection<'a> {
    table: &'a ConnectionTable,
    address: IpAddr,
}

impl<'a> WaitingConnection<'a> {
    fn new(table: &'a ConnectionTable, address: IpAddr) -> Option<Self> {
        let mut connections = table.connections.lock();
        let waiting = &mut connections.waiting;
        let own = waiting.iter().filter(|other| **other == address).count();
        if waiting.len() >= table.bounds.waiting() || own >= table.bounds.per_address {
            return None;
        }
        waiting.push(address);
        Some(Self { table, address })
    }
}

impl Drop for WaitingConnection<'_> {
    fn drop(&mut self) {
        let mut connections = self.table.connections.lock();
        let waiting = &mut connections.waiting;
        if let Some(at) = waiting.iter().position(|other| *other == self.address) {
            waiting.swap_remove(at);
        }
    }
}

/// Frees the place of another address that holds more connections than `address`. Returns whose that was.
fn evict_for(address: IpAddr, open: &mut HashMap<SocketAddr, ConnectionState>) -> Option<SocketAddr> {
    let victim = silent_one(address, open, |used| used == ConnectionUse::None)
        // An end in the middle of a review makes the apiserver show the webhook's URL, with its secret, to the user.
        .or_else(|| silent_one(address, open, |used| used != ConnectionUse::InFlight));
    evict(victim?, open)
}

/// Frees the place that this address has not used for longest, and for this time. Returns whose that was.
fn evict_unused(
    address: IpAddr,
    unused: Duration,
    open: &mut HashMap<SocketAddr, ConnectionState>,
) -> Option<SocketAddr> {
    let own = open.iter().filter(|(peer, state)| {
        peer.ip() == address
            && state.use_so_far == ConnectionUse::None
            && state.last_request.elapsed() >= unused
    });
    let victim = own.min_by_key(|(_, state)| state.last_request).map(|(peer, _)| *peer);
    evict(victim?, open)
}

fn evict(victim: SocketAddr, open: &mut HashMap<SocketAddr, ConnectionState>) -> Option<SocketAddr> {
    open.remove(&victim)?.evicted.cancel();
    Some(victim)
}

/// Of the connections of other addresses that may be closed, the longest silent one of the address that has most of them, if
/// those are more than `address` has. Where requests came from that count, a new connection needs no such share: the
/// apiserver opens several at once.
fn silent_one(
    address: IpAddr,
    open: &HashMap<SocketAddr, ConnectionState>,
    may_close: fn(ConnectionUse) -> bool,
) -> Option<SocketAddr> {
    let mut held: HashMap<IpAddr, (usize, Reverse<Instant>, SocketAddr)> = HashMap::new();
    let mut own = 0;
    let is_known =
        open.iter().any(|(peer, state)| peer.ip() == address && state.use_so_far != ConnectionUse::None);
    for (peer, state) in open.iter().filter(|(_, state)| may_close(state.use_so_far)) {
        if peer.ip() == address {
            own += usize::from(!is_known);
            continue;
        }
        let silent = (Reverse(state.last_request), *peer);
        let (count, since, longest) = held.entry(peer.ip()).or_insert((0, silent.0, silent.1));
        *count += 1;
        (*since, *longest) = silent.max((*since, *longest));
    }
    let (count, _, longest) = held.into_values().max()?;
    (count > own).then_some(longest)
}

#[cfg(test)]
mod tests;
