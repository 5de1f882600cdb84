//! The rights of webhook and sink, compared with what they did in all clusters of the test suite: no right is unused, and no
//! call was denied for lack of one. In `.ci/run` it reads their audit logs: cargo runs the tests of a
//! package in the order of their names, so that the clusters of all others are gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
};

use job_handler_e2e::cluster::E2E_AUDIT_FOLDER;
use job_handler_shared::keys::{LIMITS_CONFIGURATION, NAMESPACE, SINK_ACCOUNT, WEBHOOK_ACCOUNT};
use serde_json::Value;

/// The roles of each account, below `manifests/`.
const ROLES: [(&str, &str); 5] = [
    (WEBHOOK_ACCOUNT, "base/rbac-webhook.yaml"),
    (SINK_ACCOUNT, "base/rbac-sink.yaml"),
    (SINK_ACCOUNT, "overlays/secrets/rbac.yaml"),
    (WEBHOOK_ACCOUNT, "overlays/metrics-auth/rbac.yaml"),
    (SINK_ACCOUNT, "overlays/metrics-auth/rbac.yaml"),
];
/// What Kubernetes lets every user do (ClusterRole `system:basic-user`).
const OF_ALL_USERS: [&str; 1] = ["create authorization.k8s.io/selfsubjectaccessreviews"];

/// A right of a role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    account: String,
    /// `create /configmaps`.
    action: String,
    /// Of the only object that it is for.
    name: Option<String>,
    /// Of the Role; none in a ClusterRole.
    namespace: Option<String>,
}

/// A call in an audit log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AuditedCall {
    account: String,
    action: String,
    name: Option<String>,
    namespace: Option<String>,
    forbidden: bool,
}

impl Right {
    fn allows(&self, call: &AuditedCall) -> bool {
        let any_or = |own: &Option<String>, of_call: &Option<String>| own.is_none() || own == of_call;
        (&self.account, &self.action) == (&call.account, &call.action)
            && any_or(&self.name, &call.name)
            && any_or(&self.namespace, &call.namespace)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, action, name, namespace } = self;
        write!(f, "{account}: {action}")?;
        name.iter().try_for_each(|name| write!(f, " {name}"))?;
        namespace.iter().try_for_each(|namespace| write!(f, " in {namespace}"))
    }
}

fn rights() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for (account, file) in ROLES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(file);
        let text = fs::read_to_string(path).unwrap();
        let documents = serde_norway::Deserializer::from_str(&text)
            .map(|document| -> Value { serde::Deserialize::deserialize(document).unwrap() });
        for role in documents.filter(|document| document["rules"].is_array()) {
            for rule in role["rules"].as_array().unwrap() {
                rights.extend(rights_of_rule(account, &role, rule));
            }
        }
    }
    rights
}

/// One name for the configurations of all numbers: only clusters with many limited policies have more than one.
fn without_number(name: String) -> String {
    if name.starts_with(LIMITS_CONFIGURATION) { LIMITS_CONFIGURATION.to_owned() } else { name }
}

fn rights_of_rule(account: &str, role: &Value, rule: &Value) -> Vec<Right> {
    let list = |field: &str| -> Vec<String> {
        let items = rule[field].as_array().into_iter().flatten();
        items.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let names: Vec<Option<String>> = match list("resourceNames") {
        names if names.is_empty() => vec![None],
        names => names.into_iter().map(|name| Some(without_number(name))).collect(),
    };
    let mut rights = Vec::new();
    for group in list("apiGroups") {
        for (resource, verb) in list("resources")
            .iter()
            .flat_map(|resource| list("verbs").into_iter().map(move |verb| (resource.clone(), verb)))
        {
            rights.extend(names.iter().map(|name| Right {
                account: account.to_owned(),
                action: format!("{verb} {group}/{resource}"),
                name: name.clone(),
                namespace: role["metadata"]["namespace"].as_str().map(str::to_owned),
            }));
        }
    }
    rights
}

/// The calls of one entry; none if it is not about an object, or of another user. A patch that created the object is a create
/// as well: server-side apply needs both verbs (`apiserver/pkg/endpoints/handlers/patch.go`).
fn calls_of(entry: &Value) -> Vec<AuditedCall> {
    let prefix = format!("system:serviceaccount:{NAMESPACE}:");
    let account = entry["user"]["username"].as_str().and_then(|user| user.strip_prefix(&prefix));
    let object = &entry["objectRef"];
    let (Some(account), Some(resource)) = (account, object["resource"].as_str()) else { return Vec::new() };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let group = object["apiGroup"].as_str().unwrap_or_default();
    let subresource = object["subresource"].as_str().map_or(String::new(), |name| format!("/{name}"));
    let verb = entry["verb"].as_str().unwrap_or_default();
    let created = verb == "patch" && entry["responseStatus"]["code"] == 201;
    let verbs = [Some(verb), created.then_some("create")];
    verbs
        .into_iter()
        .flatten()
        .map(|verb| AuditedCall {
            account: account.to_owned(),
            action: format!("{verb} {group}/{resource}{subresource}"),
            name: text(&object["name"]).map(without_number),
            namespace: text(&object["namespace"]),
            // A quota, a policy or a terminating namespace cause a 403, too; only the authorizer writes this.
            forbidden: entry["annotations"]["authorization.k8s.io/decision"] == "forbid",
        })
        .collect()
}

/// The calls of all logs, without those that differ in nothing that matters.
fn calls(folder: &Path) -> BTreeSet<AuditedCall> {
    let mut calls = BTreeSet::new();
    let about_us = format!("system:serviceaccount:{NAMESPACE}:");
    for file in fs::read_dir(folder).unwrap() {
        let file = File::open(file.unwrap().path()).unwrap();
        // The last line may be cut where an apiserver was killed.
        for line in BufReader::new(file).lines().map_while(Result::ok).filter(|line| line.contains(&about_us))
        {
            let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
            calls.extend(calls_of(&entry));
        }
    }
    calls
}

/// What is wrong: rights that no call used, calls that were denied although no role should allow them, and calls that were
/// allowed by something else than our roles. A test may revoke a right of ours for a while, and an apiserver that has just
/// started denies what is everybody's right, too, until it has read the roles.
fn differences(rights: &BTreeSet<Right>, calls: &BTreeSet<AuditedCall>) -> Vec<String> {
    let unused =
        rights.iter().filter(|right| !calls.iter().any(|call| !call.forbidden && right.allows(call)));
    let unused = unused.map(|right| format!("unused: {right}"));
    let foreign = calls.iter().filter(|call| !rights.iter().any(|right| right.allows(call)));
    let foreign = foreign.filter(|call| !OF_ALL_USERS.contains(&&*call.action));
    let foreign = foreign.map(|call| format!("missing: {call:?}"));
    unused.chain(foreign).collect()
}

#[test]
fn no_right_is_unused_and_none_is_missing() {
    let Some(folder) = std::env::var_os(E2E_AUDIT_FOLDER) else {
        eprintln!(
            "skipped: without {E2E_AUDIT_FOLDER}, which .ci/run sets, there are no audit logs of the other tests"
        );
        return;
    };
    let calls = calls(Path::new(&folder));
    let accounts: BTreeSet<&str> = calls.iter().map(|call| call.account.as_str()).collect();
    assert_eq!(accounts, BTreeSet::from([SINK_ACCOUNT, WEBHOOK_ACCOUNT]), "in the audit logs");
    let differences = differences(&rights(), &calls);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn rights_and_calls_are_compared() {
    let right = |action: &str, name: Option<&str>, namespace: Option<&str>| Right {
        account: SINK_ACCOUNT.to_owned(),
        action: action.to_owned(),
        name: name.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
    };
    let entry = |verb: &str, resource: &str, namespace: &str, name: &str, code: u16, decision: &str| {
        let user = format!("system:serviceaccount:{NAMESPACE}:{SINK_ACCOUNT}");
        let entry = serde_json::json!({
            "user": {"username": user}, "verb": verb, "responseStatus": {"code": code},
            "objectRef": {"resource": resource, "namespace": namespace, "name": name},
            "annotations": {"authorization.k8s.io/decision": decision},
        });
        calls_of(&entry)
    };
    let rights = BTreeSet::from([
        right("get /configmaps", None, None),
        right("create /leases", None, Some("a")),
        right("patch /leases", None, Some("a")),
        right("get /secrets", Some("x"), None),
    ]);
    let used: BTreeSet<AuditedCall> = [
        entry("get", "configmaps", "ci", "c", 200, "allow"),
        entry("patch", "leases", "a", "l", 201, "allow"),
        entry("get", "secrets", "ci", "x", 404, "allow"),
        // A test revoked the right.
        entry("get", "configmaps", "ci", "c", 403, "forbid"),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_eq!(differences(&rights, &used), [] as [&str; 0]);
    for (call, found) in [
        (entry("delete", "configmaps", "ci", "c", 403, "forbid"), "missing: "),
        (entry("delete", "configmaps", "ci", "c", 200, "allow"), "missing: "),
        (entry("get", "secrets", "ci", "y", 403, "forbid"), "missing: "),
        (entry("create", "leases", "b", "l", 201, "allow"), "missing: "),
    ] {
        let calls = used.iter().cloned().chain(call).collect();
        let differences = differences(&rights, &calls);
        assert!(differences.len() == 1 && differences[0].starts_with(found), "{differences:?}");
    }
    let unused: Vec<String> = differences(&rights, &BTreeSet::new());
    assert_eq!(unused.len(), rights.len());
    assert!(unused.contains(&"unused: job-handler-sink: get /secrets x".to_owned()), "{unused:?}");
    for account in [SINK_ACCOUNT, WEBHOOK_ACCOUNT] {
        let reviews = Right {
            account: account.to_owned(),
            action: "create authentication.k8s.io/tokenreviews".to_owned(),
            name: None,
            namespace: None,
        };
        assert!(self::rights().contains(&reviews), "of overlay metrics-auth: {account}");
    }
    assert!(self::rights().len() > 60, "the roles are read: {}", self::rights().len());
}
