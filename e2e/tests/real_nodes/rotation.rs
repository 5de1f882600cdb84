//! Logs that the kubelet rotates: at 10 MiB, when it looks, every 10 s.

use crate::fixture::{scenario, shell_job};

/// The size of the output before the last line.
const WRITTEN: usize = 12_000_000;

#[test]
fn the_last_line_of_a_log_that_was_rotated_is_stored() {
    scenario("rotation", |real| async move {
        let ns = real.cluster.namespace("rotation").await.unwrap();
        real.harvest_everything(&ns).await;
        let script = format!("yes 0123456789abcdefghi | head -c {WRITTEN}; sleep 30; echo the last line");
        real.create(&ns, &shell_job("rotated", &script)).await.unwrap();
        let (status, manifest) = real.wait_result(&ns, "rotated").await;
        let log = real.stored_log(&ns, "rotated").await;
        println!("rotated: {} bytes of {WRITTEN} are stored: {manifest:#}", log.len());
        assert_eq!(status, "completed", "{manifest}");
        assert!(log.ends_with(b"the last line\n"), "{manifest}");
    });
}
