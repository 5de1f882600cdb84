use super::*;

const MAX_CONNECTIONS: usize = 512;
const MAX_PER_ADDRESS: usize = 256;
const MAX_UNUSED: Duration = Duration::from_secs(3);
const BOUNDS: ConnectionBounds =
    ConnectionBounds { total: MAX_CONNECTIONS, per_address: MAX_PER_ADDRESS, unused: MAX_UNUSED };

fn table() -> ConnectionTable {
    ConnectionTable::new(BOUNDS, |_| {})
}

fn peer(host: u8, port: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], u16::try_from(port + 1).unwrap()))
}

fn open(table: &ConnectionTable, host: u8, count: usize) -> Vec<OpenConnection> {
    (0..count).map(|port| table.open(peer(host, port)).unwrap()).collect()
}

#[tokio::test]
async fn an_address_has_half_of_the_places_and_gets_them_back() {
    let table = table();
    let mut held = open(&table, 1, MAX_PER_ADDRESS);
    assert!(table.open(peer(1, 60_000)).is_none());
    assert!(table.open(peer(2, 1)).is_some());
    held.pop();
    assert!(table.open(peer(1, 60_000)).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_address_gets_the_places_that_it_does_not_use() {
    let table = table();
    let held = open(&table, 1, MAX_PER_ADDRESS);
    drop(table.request_began(peer(1, 0)));
    tokio::time::advance(MAX_UNUSED - LOOK_INTERVAL).await;
    assert!(table.open(peer(1, 60_000)).is_none());
    tokio::time::advance(LOOK_INTERVAL).await;
    let others: Vec<_> = (1..MAX_PER_ADDRESS).map(|n| table.open(peer(1, 50_000 + n)).unwrap()).collect();
    assert!(table.open(peer(1, 60_000)).is_none(), "all are new or in use");
    assert!(!held[0].evicted.is_cancelled() && held[1..].iter().all(|held| held.evicted.is_cancelled()));
    drop((held, others));
    assert!(table.connections.lock().open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_table_makes_room_at_the_cost_of_the_largest_holder() {
    let table = table();
    let first = open(&table, 1, MAX_PER_ADDRESS);
    let second = open(&table, 2, MAX_PER_ADDRESS - 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    for connection in second.iter().chain(first.iter().filter(|held| held.peer != peer(1, 7))) {
        drop(table.request_began(connection.peer));
    }
    let apiserver = open(&table, 3, 2);
    assert_eq!(table.connections.lock().open.len(), MAX_CONNECTIONS);
    let evicted: Vec<_> =
        first.iter().chain(&second).filter(|connection| connection.evicted.is_cancelled()).collect();
    assert_eq!(evicted.iter().map(|connection| connection.peer).collect::<Vec<_>>(), [peer(1, 7)]);
    evicted[0].must_close().await;
    drop((first, second, apiserver));
    assert!(table.connections.lock().open.is_empty());
}

/// One connection for each of many addresses: the apiserver holds more than any of them.
#[tokio::test(start_paused = true)]
async fn strangers_of_many_addresses_do_not_displace_the_apiserver() {
    let table = table();
    let apiserver = open(&table, 1, 3);
    let answered = table.request_began(peer(1, 0));
    let slow = table.request_began(peer(1, 1));
    drop(answered);
    let stranger = |n: usize| {
        let [.., high, low] = n.to_be_bytes();
        table.open(SocketAddr::from(([10, 1, high, low], 1)))
    };
    let mut strangers: Vec<_> = (0..MAX_CONNECTIONS - 3).map(|n| stranger(n).unwrap()).collect();
    tokio::time::advance(Duration::from_secs(1)).await;
    strangers.extend((1000..1100).map(|n| stranger(n).unwrap()));
    // The third one has not brought a review yet.
    assert!(apiserver[..2].iter().all(|held| !held.evicted.is_cancelled()));
    // Also the apiserver gets a place at the cost of a stranger.
    assert!(table.open(peer(1, 9)).is_some());
    drop((strangers, slow));
}

#[tokio::test]
async fn a_review_that_is_being_answered_keeps_its_connection() {
    let table = table();
    let held = [open(&table, 1, MAX_PER_ADDRESS), open(&table, 2, MAX_PER_ADDRESS)];
    let mut reviews: Vec<_> =
        held.iter().flatten().map(|connection| table.request_began(connection.peer)).collect();
    assert!(table.open(peer(3, 1)).is_none(), "it waits");
    reviews.pop();
    assert!(table.open(peer(3, 1)).is_some());
    assert!(held[1].last().unwrap().evicted.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_connection_beyond_the_share_of_its_address_waits_for_a_moment() {
    let table = table();
    let mut held = open(&table, 1, MAX_PER_ADDRESS);
    held.iter().for_each(|held| drop(table.request_began(held.peer)));
    let begun = Instant::now();
    assert!(table.place(peer(1, 60_000)).await.is_none());
    assert!(begun.elapsed() >= MAX_WAIT);
    let leaves = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.pop();
    };
    let (place, ()) = tokio::join!(table.place(peer(1, 60_000)), leaves);
    assert!(place.is_some());
    assert!(table.connections.lock().waiting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_address_has_a_share_of_those_that_wait() {
    let table = table();
    let held = [open(&table, 1, MAX_PER_ADDRESS), open(&table, 2, MAX_PER_ADDRESS)];
    held.iter().flatten().for_each(|held| drop(table.request_began(held.peer)));
    let waits = async |host: u8| {
        let begun = Instant::now();
        assert!(table.place(peer(host, 60_000)).await.is_none());
        !begun.elapsed().is_zero()
    };
    table.connections.lock().waiting = vec![peer(1, 0).ip(); MAX_PER_ADDRESS];
    assert_eq!([waits(1).await, waits(2).await], [false, true]);
    table.connections.lock().waiting = vec![peer(3, 0).ip(); BOUNDS.waiting()];
    assert!(!waits(2).await);
}

/// Where no request counts, such as on the admin port.
#[tokio::test]
async fn without_time_for_the_unused_the_newest_connection_has_a_place() {
    let bounds = ConnectionBounds { total: 6, per_address: 2, unused: Duration::ZERO };
    let table = ConnectionTable::new(bounds, |_| {});
    let strangers: Vec<_> = (1..=3).map(|host| open(&table, host, 4)).collect();
    let kept = |held: &OpenConnection| !held.evicted.is_cancelled();
    for held in &strangers {
        assert!(kept(&held[3]) && held.iter().filter(|held| kept(held)).count() == 2);
    }
    let probe = table.place(peer(4, 0)).await.unwrap();
    assert!(kept(&probe) && strangers.iter().flatten().filter(|held| kept(held)).count() == 5);
}

#[tokio::test(start_paused = true)]
async fn who_loses_a_connection_or_gets_no_place_is_reported() {
    let lost = Arc::new(Mutex::new(Vec::new()));
    let reported = lost.clone();
    let table = ConnectionTable::new(BOUNDS, move |address| reported.lock().push(address));
    let lost = || std::mem::take(&mut *lost.lock());
    let held = [open(&table, 1, MAX_PER_ADDRESS), open(&table, 2, MAX_PER_ADDRESS - 1)];
    let other = table.open(peer(3, 1)).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let reviews: Vec<_> = held[0].iter().map(|held| table.request_began(held.peer)).collect();
    assert!(lost().is_empty());
    // At the cost of one whose reviews were answered.
    held[1].iter().chain([&other]).for_each(|held| drop(table.request_began(held.peer)));
    let late = table.place(peer(4, 1)).await.unwrap();
    assert_eq!(lost(), [peer(2, 0).ip()]);
    assert!(table.place(peer(1, 60_000)).await.is_none());
    assert_eq!(lost(), [peer(1, 0).ip()]);
    table.connections.lock().waiting = vec![peer(1, 0).ip(); MAX_PER_ADDRESS];
    assert!(table.place(peer(1, 60_000)).await.is_none());
    assert_eq!(lost(), [peer(1, 0).ip()]);
    drop((held, other, reviews, late));
    assert!(lost().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    let table = table();
    let connection = table.open(peer(1, 1)).unwrap();
    let begun = Instant::now();
    let closes = async {
        connection.must_close().await;
        begun.elapsed()
    };
    let request = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        drop(table.request_began(peer(1, 1)));
    };
    let (lived, ()) = tokio::join!(closes, request);
    assert_eq!(lived.as_secs(), MAX_SILENCE.as_secs() + 100);
}
