use super::*;

#[test]
fn metrics_have_the_names_that_dashboards_use() {
    let metrics = Metrics::default();
    let own = SinkMetrics::new(&metrics);
    own.set_leading(true);
    own.job_created();
    own.job_failed(Cause::Oom);
    let job = JobSnapshot {
        started: Some(jiff::Timestamp::UNIX_EPOCH),
        finished: Some(job_handler_shared::job::snapshot::Finished {
            outcome: Outcome::Failed,
            reason: String::new(),
            message: String::new(),
            at: jiff::Timestamp::from_second(3).unwrap(),
        }),
        ..JobSnapshot::default()
    };
    own.job_finished(&job, false);
    let limit = |name: &str| ("JobPolicy ci/builds".to_owned(), name.to_owned());
    own.set_limits_queued([(limit("few"), 3), (limit("removed"), 1)].into());
    own.set_limits_queued([(limit("few"), 2)].into());
    let text = metrics.encode().unwrap();
    for line in [
        "k8s_job_creation_total{status=\"created\"} 1",
        "k8s_job_failures_total{reason=\"oom\"} 1",
        "k8s_job_failures_total{reason=\"error\"} 1",
        "k8s_job_duration_seconds_count{status=\"failed\"} 1",
        "k8s_active_jobs 0",
        "job_handler_limit_queued{policy=\"JobPolicy ci/builds\",limit=\"few\"} 2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("removed"), "{text}");
    let truncated = Completeness { truncated: vec!["a log".into()], ..Completeness::default() };
    own.harvested(Outcome::Completed, &truncated, 0.0);
    let text = metrics.encode().unwrap();
    assert!(text.contains("job_handler_results_truncated_total 1"), "{text}");
    assert!(text.contains("job_handler_results_incomplete_total 0"), "no alert: {text}");
    own.set_leading(false);
    assert!(!metrics.encode().unwrap().contains("limit_queued{"), "only the leader reports queued Jobs");
}
