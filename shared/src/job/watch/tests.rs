use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch::channel;

use super::*;
use crate::{process::admin::Readiness, testing::apiserver::Apiserver};

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<(Vec<String>, bool)>>);

impl Diary {
    fn write(&self, line: String) {
        self.0.lock().0.push(line);
    }

    async fn wait_for(&self, last: &str) -> Vec<String> {
        let seen = async {
            while self.0.lock().0.last().is_none_or(|line| line != last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), seen).await.is_ok();
        let lines = std::mem::take(&mut self.0.lock().0);
        assert!(in_time, "no `{last}` in {lines:?}");
        lines
    }
}

impl JobObserver for Diary {
    fn read(&self, json: &[u8]) -> serde_json::Result<JobSnapshot> {
        serde_json::from_slice::<Job>(json).map(|job| JobSnapshot::from(&job))
    }
    fn list_began(&mut self) {
        self.0.lock().1 = false;
        self.write("list".into());
    }
    fn listed(&mut self, job: JobSnapshot) {
        self.write(format!("listed {}", job.name));
    }
    fn list_ended(&mut self, position: u64) {
        self.write(format!("end {position}"));
    }
    fn changed(&mut self, job: JobSnapshot, position: u64) {
        self.write(format!("changed {} {position}", job.name));
    }
    fn deleted(&mut self, job: JobSnapshot, position: u64) {
        self.write(format!("deleted {} {position}", job.name));
    }
    fn reached(&mut self, position: u64) {
        self.write(format!("reached {position}"));
    }
    fn needs_list(&self) -> bool {
        self.0.lock().1
    }
}

const TIMING: WatchTiming =
    WatchTiming { seconds: 60, silence: Duration::from_secs(60), relist: Duration::from_millis(700) };

fn job(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name, "namespace": "ci"}})
}

#[tokio::test]
async fn jobs_are_listed_watched_and_listed_again_when_more_of_them_is_needed() {
    let apiserver = Apiserver::default();
    apiserver.put("jobs", job("a"));
    apiserver.put("jobs", job("b"));
    let (diary, readiness) = (Diary::default(), Readiness::default());
    let (policies, changes) = channel(0);
    let watch = run(apiserver.client(), TIMING, diary.clone(), changes, readiness.register("Jobs"));
    let watch = tokio::spawn(watch);
    assert_eq!(diary.wait_for("end 2").await, ["list", "listed a", "listed b", "end 2"]);
    assert!(readiness.not_ready().is_empty());
    apiserver.put("jobs", job("c"));
    apiserver.remove("jobs", "ci", "a");
    assert_eq!(diary.wait_for("deleted a 4").await, ["changed c 3", "deleted a 4"]);
    policies.send_modify(|n| *n += 1);
    diary.0.lock().1 = true;
    policies.send_modify(|n| *n += 1);
    assert_eq!(diary.wait_for("end 4").await, ["list", "listed b", "listed c", "end 4"]);
    watch.abort();
}

#[tokio::test]
async fn jobs_are_listed_for_more_of_them_once_in_a_while_and_the_watch_goes_on_until_then() {
    let apiserver = Apiserver::default();
    apiserver.put("jobs", job("a"));
    let (diary, readiness) = (Diary::default(), Readiness::default());
    let (policies, changes) = channel(0);
    let watch = run(apiserver.client(), TIMING, diary.clone(), changes, readiness.register("Jobs"));
    let watch = tokio::spawn(watch);
    diary.wait_for("end 1").await;
    // More than was listed is needed again and again.
    let changing = tokio::spawn({
        let diary = diary.clone();
        async move {
            loop {
                diary.0.lock().1 = true;
                policies.send_modify(|n| *n += 1);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let began = Instant::now();
    // The first list for more of them waits for nothing.
    assert_eq!(diary.wait_for("end 1").await, ["list", "listed a", "end 1"]);
    apiserver.put("jobs", job("b"));
    assert_eq!(diary.wait_for("changed b 2").await, ["changed b 2"]);
    assert_eq!(diary.wait_for("end 2").await, ["list", "listed a", "listed b", "end 2"]);
    assert!(began.elapsed() >= TIMING.relist, "{:?}", began.elapsed());
    changing.abort();
    watch.abort();
}

#[tokio::test]
async fn a_job_that_cannot_be_read_holds_the_watch_up_for_as_long_as_it_exists_only() {
    let apiserver = Apiserver::default();
    apiserver.put("jobs", job("a"));
    let (diary, readiness) = (Diary::default(), Readiness::default());
    let (_policies, changes) = channel(0);
    let watch = run(apiserver.client(), TIMING, diary.clone(), changes, readiness.register("Jobs"));
    let watch = tokio::spawn(watch);
    diary.wait_for("end 1").await;
    let mut unreadable = job("b");
    unreadable["spec"] = json!({"parallelism": "two"});
    apiserver.put("jobs", unreadable);
    apiserver.remove("jobs", "ci", "b");
    assert_eq!(diary.wait_for("end 3").await, ["list", "listed a", "end 3"]);
    apiserver.put("jobs", job("c"));
    assert_eq!(diary.wait_for("changed c 4").await, ["changed c 4"]);
    watch.abort();
}
