//! Every name that a user, an operator or the other program can see.

/// Label: `"true"` opts in where a policy selects on it, `"false"` opts out of defaults, harvest and prune.
pub const ENABLED: &str = "job-handler/enabled";
/// Label on Job, pods and result: the group the Job is a run of.
pub const GROUP: &str = "job-handler/group";
/// Annotation: what was set, clamped or relocated, and by which policy.
pub const STAMPED: &str = "job-handler/stamped";
/// Annotation: seconds; the TTL that applies once the result is stored.
pub const TTL: &str = "job-handler/ttl-seconds-after-finished";
/// Annotation: RFC 3339; the Job waits for a slot since then. Only such Jobs are ever released, and only where
/// [`STAMPED`] says so too.
pub const QUEUED_AT: &str = "job-handler/queued-at";
/// Annotation on the Job and label on the result: [`STATUS_COMPLETED`] or [`STATUS_FAILED`].
pub const STATUS: &str = "job-handler/status";
/// Annotation: name of the result.
pub const RESULTS: &str = "job-handler/results";
/// Annotation: the Job's own uid, where its stored result has been removed by retention: it is not harvested again. A
/// copied one names another Job and gains nothing.
pub const RETIRED: &str = "job-handler/result-retired";
/// Annotation set by authors: `backoffLimit` keeps an explicit 6 (the API default cannot be told from it).
pub const KEEP: &str = "job-handler/keep";
/// Label on results: made by us.
pub const CREATED: &str = "job-handler/created";
/// Label on results: the Job they are of (Kubernetes' own former pod label).
pub const JOB_NAME: &str = "job-name";
/// Label on shards of a result: uid of the Job.
pub const JOB_UID: &str = "job-handler/job-uid";
/// Label on our Leases: which program holds it.
pub const COMPONENT: &str = "job-handler/component";
/// Annotation on a webhook replica's Lease: JSON map policy uid -> generation it enforces.
pub const ENFORCES: &str = "job-handler/enforces";
/// Annotation on a webhook replica's Lease: JSON map policy uid -> why it cannot decide by that policy's limits yet.
pub const WITHHELD: &str = "job-handler/withheld";

/// Value of [`STATUS`] after condition `Complete`.
pub const STATUS_COMPLETED: &str = "completed";
/// Value of [`STATUS`] after condition `Failed`.
pub const STATUS_FAILED: &str = "failed";

/// Keys of ours that an author's create may not carry: each is dropped or overwritten by the webhook.
pub const OURS_ON_JOBS: [&str; 6] = [STAMPED, TTL, QUEUED_AT, STATUS, RESULTS, RETIRED];

/// Kueue's queue label: such Jobs are never queued, released or healed by us.
pub const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// The value of `spec.managedBy` of Jobs that Kubernetes' own controller runs
/// (`k8s.io/api/batch/v1`, `JobControllerName`).
pub const JOB_CONTROLLER: &str = "kubernetes.io/job-controller";

/// API group of the policies.
pub const API_GROUP: &str = "job-handler.io";
/// API version of the policies.
pub const API_VERSION: &str = "v1alpha1";

/// Default namespace of the pair.
pub const NAMESPACE: &str = "job-handler-system";
/// Deployment, Service, ServiceAccount and MutatingWebhookConfiguration.
pub const APP: &str = "job-handler";
/// Secret with the CA, in the pair's namespace.
pub const CA_SECRET: &str = "job-handler-ca";
/// MutatingWebhookConfiguration.
pub const MUTATING_CONFIGURATION: &str = "job-handler";
/// Its webhook of creates.
pub const MUTATING_WEBHOOK: &str = "stamp.job-handler.io";
/// And the one of updates.
pub const MUTATING_UPDATE_WEBHOOK: &str = "update.stamp.job-handler.io";
/// ValidatingWebhookConfiguration, kept by the sink's leader.
pub const LIMITS_CONFIGURATION: &str = "job-handler-limits";
/// Suffix of its webhooks' names; see DESIGN «limit.job-handler.io/…».
pub const LIMIT_WEBHOOK_SUFFIX: &str = "limit.job-handler.io";
/// The same of policies that only warn.
pub const WARN_WEBHOOK_SUFFIX: &str = "warn.job-handler.io";
/// ConfigMap with the sink's configuration file, and Secret with the bearer tokens of its CloudEvent receivers; neither
/// has to exist.
pub const SINK_CONFIGURATION: &str = "job-handler-sink";
/// Where the base install mounts that ConfigMap's key `config.yaml`.
pub const SINK_CONFIGURATION_FILE: &str = "/etc/job-handler/sink/config.yaml";
/// Lease of the sink's leader.
pub const LEADER_LEASE: &str = "job-handler-sink";
/// Prefix of the Leases of webhook replicas.
pub const WEBHOOK_LEASE_PREFIX: &str = "job-handler-webhook-";
/// Value of [`COMPONENT`] on them.
pub const COMPONENT_WEBHOOK: &str = "webhook";
/// Seconds that a webhook replica's Lease lives without renewal.
pub const WEBHOOK_LEASE_SECONDS: i32 = 15;
/// The policy of the base install.
pub const DEFAULT_POLICY: &str = "job-handler-default";
/// ConfigMap that carries the policies of the base install until they are created.
pub const DEFAULTS: &str = "job-handler-defaults";
/// Annotation on it: names of the policies that were created, comma between them; they are not created again.
pub const DEFAULTS_CREATED: &str = "job-handler/created-policies";

/// HTTP path of stamping.
pub const MUTATE_PATH: &str = "/mutate";
/// HTTP path of limits.
pub const VALIDATE_PATH: &str = "/validate";
/// HTTP path of what policies in mode Warn tell.
pub const WARN_PATH: &str = "/warn";
/// TCP port of the webhook (TLS).
pub const WEBHOOK_PORT: u16 = 8443;
/// TCP port of the webhook's admin endpoint (plain HTTP).
pub const WEBHOOK_ADMIN_PORT: u16 = 8080;
/// TCP port of the sink's admin endpoint (plain HTTP).
pub const SINK_ADMIN_PORT: u16 = 8081;
/// Socket over which refusals go from webhook to sink.
pub const REFUSAL_SOCKET: &str = "/run/job-handler/refusals.sock";

/// `reportingController` of every Event of ours.
pub const REPORTING_CONTROLLER: &str = "job-handler.io/sink";
/// Event: a Job was refused.
pub const REASON_REFUSED: &str = "JobRefused";
/// Event: a Job was created suspended and waits for a slot.
pub const REASON_QUEUED: &str = "JobQueued";
/// Event: a Job that waited for a slot was started.
pub const REASON_STARTED: &str = "JobStarted";
/// Event: a Job that the webhook missed was stamped late.
pub const REASON_HEALED: &str = "JobHealed";
/// Event: a Job was harvested.
pub const REASON_PROCESSING: &str = "JobProcessing";
/// Event: a foreign object has the name the result would have had.
pub const REASON_NAME_TAKEN: &str = "ResultNameTaken";
/// Event: some or all of a result could not be kept.
pub const REASON_LOST: &str = "ResultLost";

/// Namespaces whose Jobs are never touched (besides the pair's own).
pub const EXCLUDED_NAMESPACES: [&str; 1] = ["kube-system"];
