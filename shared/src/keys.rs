//! Names that users, operators or the other program see: labels, annotations, objects, paths, ports, Event reasons.
//! The README of this crate lists the labels, annotations and reasons; a test in `manifests` compares the two.

/// Label: `"true"` opts in to policies that select it; `"false"` opts out of defaults, results and deletion.
pub const ENABLED: &str = "job-handler/enabled";
/// Label on Job, pods and result: the group of the Job.
pub const GROUP: &str = "job-handler/group";
/// Annotation: what was set, lowered or moved, and by which policy.
pub const STAMPED: &str = "job-handler/stamped";
/// Annotation: the TTL, in seconds, that applies once the result is stored.
pub const TTL: &str = "job-handler/ttl-seconds-after-finished";
/// Annotation: RFC 3339 time since which the Job has waited for a slot. The sink releases only Jobs that have it and
/// whose [`STAMPED`] annotation says that the webhook queued them.
pub const QUEUED_AT: &str = "job-handler/queued-at";
/// Annotation on the Job and label on the result: [`STATUS_COMPLETED`] or [`STATUS_FAILED`].
pub const STATUS: &str = "job-handler/status";
/// Annotation: name of the result.
pub const RESULTS: &str = "job-handler/results";
/// Annotation: uid of the Job itself, once retention has deleted its result. The sink does not harvest the Job again. A
/// copied annotation has the uid of another Job and no effect.
pub const RETIRED: &str = "job-handler/result-retired";
/// Annotation set by authors: `backoffLimit` keeps an explicit 6, which is also the default of the API.
pub const KEEP: &str = "job-handler/keep";
/// All annotations of a Job that the programs read. Others with the prefix are somebody's own.
pub const ON_JOBS: [&str; 7] = [STAMPED, TTL, QUEUED_AT, STATUS, RESULTS, RETIRED, KEEP];
/// What only the sink sets on a Job; the ValidatingAdmissionPolicy [`MARKS_ADMISSION_POLICY`] names them.
pub const MARKS: [&str; 3] = [STATUS, RESULTS, RETIRED];
/// Label on results: created by job-handler.
pub const CREATED: &str = "job-handler/created";
/// Label on results: name of the Job (Kubernetes' own former pod label).
pub const JOB_NAME: &str = "job-name";
/// Label on a result and its shards: uid of the Job.
pub const JOB_UID: &str = "job-handler/job-uid";
/// Label on Leases: the program that holds the Lease.
pub const COMPONENT: &str = "job-handler/component";
/// Annotation on the Lease of a webhook replica: JSON map from the first 13 characters of a policy's uid to the generation
/// that it enforces.
pub const ENFORCES: &str = "job-handler/enforces";
/// Annotation on the Lease of a webhook replica: JSON map from the first 13 characters of a policy's uid to why it cannot
/// enforce the limits yet.
pub const WITHHELD: &str = "job-handler/withheld";

/// Value of [`STATUS`] after condition `Complete`.
pub const STATUS_COMPLETED: &str = "completed";
/// Value of [`STATUS`] after condition `Failed`.
pub const STATUS_FAILED: &str = "failed";

/// Queue label of Kueue. Jobs that have it are never queued, released or repaired.
pub const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// `spec.managedBy` of Jobs that Kubernetes' own controller runs (`k8s.io/api/batch/v1`, `JobControllerName`).
pub const JOB_CONTROLLER: &str = "kubernetes.io/job-controller";

/// Finalizer of an object that is deleted while its dependents stay (`k8s.io/apimachinery`, `FinalizerOrphanDependents`).
pub const ORPHAN_FINALIZER: &str = "orphan";
/// Label with the uid of a pod's Job (`k8s.io/api/batch/v1`, `ControllerUidLabel`). The pod keeps it when it is orphaned.
pub const POD_JOB_UID: &str = "batch.kubernetes.io/controller-uid";

/// API group of the policies.
pub const API_GROUP: &str = "job-handler.io";
/// API version of the policies.
pub const API_VERSION: &str = "v1alpha1";

/// Default namespace of job-handler.
pub const NAMESPACE: &str = "job-handler-system";
/// Name of the Deployment, Service and MutatingWebhookConfiguration.
pub const APP: &str = "job-handler";
/// ServiceAccount of the webhook, and of the pod.
pub const WEBHOOK_ACCOUNT: &str = "job-handler-webhook";
/// ServiceAccount of the sink.
pub const SINK_ACCOUNT: &str = "job-handler-sink";
/// Secret with the sink's token.
pub const SINK_TOKEN: &str = "job-handler-sink-token";
/// Secret with the CA, in the namespace of job-handler.
pub const CA_SECRET: &str = "job-handler-ca";
/// MutatingWebhookConfiguration.
pub const MUTATING_CONFIGURATION: &str = "job-handler";
/// Its webhook for creates.
pub const MUTATING_WEBHOOK: &str = "stamp.job-handler.io";
/// Its webhook for updates.
pub const MUTATING_UPDATE_WEBHOOK: &str = "update.stamp.job-handler.io";
/// The first ValidatingWebhookConfiguration of the limits, maintained by the leader of the sinks. Where it has no room,
/// there are further ones, up to [`LIMITS_CONFIGURATIONS`]: `job-handler-limits-1` and so on.
pub const LIMITS_CONFIGURATION: &str = "job-handler-limits";
/// Maximum number of ValidatingWebhookConfigurations of the limits.
pub const LIMITS_CONFIGURATIONS: usize = 64;
/// Annotation of webhook configurations with the value `true`: the admissions enforcer of AKS does not add selectors to
/// them, which nobody asked for and which we would take for somebody's change.
pub const NO_AKS_ENFORCER: &str = "admissions.enforcer/disabled";
/// Suffix of the names of its webhooks for policies that enforce limits.
pub const LIMIT_WEBHOOK_SUFFIX: &str = "limit.job-handler.io";
/// Suffix of the names of its webhooks for policies in mode Warn.
pub const WARN_WEBHOOK_SUFFIX: &str = "warn.job-handler.io";
/// Optional ConfigMap with the configuration file of the sink, and optional Secret with the bearer tokens of its
/// CloudEvents receivers.
pub const SINK_CONFIGURATION: &str = "job-handler-sink";
/// Path at which the base install mounts the key `config.yaml` of that ConfigMap.
pub const SINK_CONFIGURATION_FILE: &str = "/etc/job-handler/sink/config.yaml";
/// Secret with the key by which the sink recognises its results (`job-handler/seal`), in the namespace of job-handler.
pub const SEAL_SECRET: &str = "job-handler-seal";
/// ValidatingAdmissionPolicy, and its binding: only the sink makes results.
pub const RESULTS_ADMISSION_POLICY: &str = "job-handler-results";
/// ValidatingAdmissionPolicy, and its binding: only the sink says on a Job that its result is stored.
pub const MARKS_ADMISSION_POLICY: &str = "job-handler-marks";
/// Lease of the leader of the sinks.
pub const LEADER_LEASE: &str = "job-handler-sink";
/// Prefix of the Leases of webhook replicas.
pub const WEBHOOK_LEASE_PREFIX: &str = "job-handler-webhook-";
/// Value of [`COMPONENT`] on these Leases.
pub const COMPONENT_WEBHOOK: &str = "webhook";
/// Duration of a webhook replica's Lease, in seconds.
pub const WEBHOOK_LEASE_SECONDS: i32 = 15;
/// Policy of the base install.
pub const DEFAULT_POLICY: &str = "job-handler-default";
/// ConfigMap that holds the policies of the base install until they are created.
pub const DEFAULTS: &str = "job-handler-defaults";
/// Annotation on that ConfigMap: comma-separated names of the policies that were created; they are not created again.
pub(crate) const DEFAULTS_CREATED: &str = "job-handler/created-policies";

/// HTTP path of stamping.
pub const MUTATE_PATH: &str = "/mutate";
/// HTTP path of limits.
pub const VALIDATE_PATH: &str = "/validate";
/// HTTP path of policies in mode Warn.
pub const WARN_PATH: &str = "/warn";
/// TCP port of the webhook (TLS).
pub const WEBHOOK_PORT: u16 = 8443;
/// TCP port of the webhook's admin endpoint (plain HTTP).
pub const WEBHOOK_ADMIN_PORT: u16 = 8080;
/// TCP port of the sink's admin endpoint (plain HTTP).
pub const SINK_ADMIN_PORT: u16 = 8081;
/// Unix socket over which the webhook sends refusals to the sink.
pub const REFUSAL_SOCKET: &str = "/run/job-handler/refusals.sock";

/// `reportingController` of all Events.
pub const REPORTING_CONTROLLER: &str = "job-handler.io/sink";
/// Event: a Job was refused.
pub const REASON_REFUSED: &str = "JobRefused";
/// Event: a policy in mode Warn would have refused or queued a Job.
pub const REASON_WOULD_REFUSE: &str = "JobWouldBeRefused";
/// Event: a Job was created suspended and waits for a slot, or has moved up in the queue.
pub const REASON_QUEUED: &str = "JobQueued";
/// Event: a queued Job was released.
pub const REASON_STARTED: &str = "JobStarted";
/// Event: a Job that the webhook missed was stamped afterwards.
pub const REASON_HEALED: &str = "JobHealed";
/// Event: a result was stored.
pub const REASON_PROCESSING: &str = "JobProcessing";
/// Event: another object has the name of the result.
pub const REASON_NAME_TAKEN: &str = "ResultNameTaken";
/// Event: a result, or a part of it, could not be stored.
pub const REASON_LOST: &str = "ResultLost";
/// Event: a log cannot be read for now, so that the result is not stored yet.
pub const REASON_DELAYED: &str = "ResultDelayed";
/// Event: somebody deleted or edited the webhook entry of a policy.
pub const REASON_LIMIT_ENTRY_MISSING: &str = "LimitEntryMissing";

/// Namespaces whose Jobs are never changed, besides the namespace of job-handler.
pub const EXCLUDED_NAMESPACES: [&str; 1] = ["kube-system"];
