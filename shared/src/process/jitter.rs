//! Random pauses, so that replicas and clients that failed together do not retry together.

use std::time::Duration;

/// Between half of `pause` and all of it: retries keep their rough pace ("equal jitter").
pub fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Between nothing and all of `pause`: replicas that compete for one object spread out most ("full jitter").
pub fn full_jitter(pause: Duration) -> Duration {
    pause.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_in_their_range() {
        let pause = Duration::from_secs(1);
        let equal: Vec<Duration> = (0..100).map(|_| jitter(pause)).collect();
        assert!(equal.iter().all(|one| (pause / 2..=pause).contains(one)), "{equal:?}");
        assert!(equal.iter().any(|one| *one != equal[0]), "{equal:?}");
        let full: Vec<Duration> = (0..100).map(|_| full_jitter(pause)).collect();
        assert!(full.iter().all(|one| *one <= pause), "{full:?}");
        assert!(full.iter().any(|one| *one < pause / 2), "{full:?}");
    }
}
