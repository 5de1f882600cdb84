//! The harvest of Jobs with which nothing is wrong, beside others with which something is, and beside as many with which
//! nothing is, in turns.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::bench::harvest::harvested;
use crate::bench::report::{Aim, Table, figure, median, median_ratio};
use crate::bench::seed::{self, Seed, ask_for_results, finish, send};
use crate::cluster::jobs::PREFIX;
use crate::cluster::namespace::TestNamespace;
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::pair::{Pair, PairOptions};

/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of each Job's log.
const LOG: u64 = 2 << 10;
/// Writes at a time.
const WRITERS: usize = 16;
/// The receiver of CloudEvents that is down.
const DOWN: &str = "down";

/// What is wrong with some Jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A ResourceQuota that lets no ConfigMap in.
    Quota,
    /// An admission policy that lets no log in.
    Admission,
    /// Their namespace is terminating.
    Terminating,
    /// They are deleted meanwhile.
    Deleted,
    /// The node does not answer calls for their logs.
    Hanging,
    /// They have many pods.
    ManyPods,
    /// The receiver that is to be told of them is down.
    ReceiverDown,
}

impl Trouble {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Quota,
        Self::Admission,
        Self::Terminating,
        Self::Deleted,
        Self::Hanging,
        Self::ManyPods,
        Self::ReceiverDown,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quota => "a full quota",
            Self::Admission => "logs refused by admission",
            Self::Terminating => "a terminating namespace",
            Self::Deleted => "Jobs deleted meanwhile",
            Self::Hanging => "log calls that hang, same nodes",
            Self::ManyPods => "a Job of many pods",
            Self::ReceiverDown => "a receiver that is down",
        }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rounds; in each, every trouble once.
    pub rounds: usize,
    /// Jobs of each batch that is measured.
    pub jobs: usize,
    /// Jobs of each trouble, and as many without.
    pub ill: usize,
    /// Pods of the Job of many pods.
    pub pods: usize,
    /// Each trouble by itself too, not only all of it at once.
    pub each: bool,
}

impl Sizes {
    /// To see that everything works.
    pub const QUICK: Self = Self { rounds: 1, jobs: 20, ill: 4, pods: 12, each: false };
}

impl Default for Sizes {
    /// About five minutes on two cores.
    fn default() -> Self {
        Self { rounds: 3, jobs: 300, ill: 40, pods: 1_000, each: true }
    }
}

/// A cluster whose Jobs only finish because their status is written.
#[derive(Debug)]
pub struct Ground {
    // Dropped in this order.
    namespaces: Vec<TestNamespace>,
    used: usize,
    /// The pair.
    pub pair: Pair,
    /// The cluster.
    pub cluster: Cluster,
}

/// A batch with trouble beside it, and the same without.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Jobs per second beside trouble.
    pub beside: f64,
    /// Jobs per second beside Jobs with which nothing is wrong.
    pub without: f64,
    /// Where the trouble was.
    pub places: Vec<(Trouble, String)>,
}

impl Compared {
    /// The share of the rate that is left.
    pub fn ratio(&self) -> f64 {
        self.beside / self.without
    }
}

/// Measures on a cluster of its own.
///
/// # Errors
/// If anything does not run, or a result is missing.
pub async fn measure(sizes: Sizes) -> Result<Table> {
    let mut rows: Vec<(String, Vec<Trouble>)> =
        Trouble::ALL.iter().map(|trouble| (trouble.name().to_owned(), vec![*trouble])).collect();
    if !sizes.each {
        rows.clear();
    }
    rows.push(("all of it at once".to_owned(), Trouble::ALL.to_vec()));
    let ground = Ground::new(rows.iter().map(|(_, all)| spaces(all)).sum::<usize>() * sizes.rounds).await?;
    let mut found: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); rows.len()];
    let mut ground = ground;
    for round in 0..sizes.rounds {
        for ((_, troubles), (beside, without)) in rows.iter().zip(&mut found) {
            // Each goes first in turn.
            if round % 2 == 0 {
                without.push(ground.without(troubles, sizes).await?);
            }
            let (rate, places) = ground.beside(troubles, sizes).await?;
            beside.push(rate);
            ground.calm(&places).await?;
            if round % 2 == 1 {
                without.push(ground.without(troubles, sizes).await?);
            }
        }
    }
    let mut table =
        Table::new("Harvest beside disturbances", &["beside", "Jobs/s", "without", "of the rate without"]);
    let mut least = f64::INFINITY;
    for ((name, _), (beside, without)) in rows.into_iter().zip(&found) {
        let ratio = median_ratio(beside, without);
        least = least.min(ratio);
        let (beside, without) = (median(beside.iter().copied()), median(without.iter().copied()));
        table.rows.push(vec![name, figure(beside), figure(without), figure(ratio)]);
    }
    table.aims.push(Aim {
        what: "at least 0.90 of the rate without, beside each".to_owned(),
        found: figure(least),
        met: least >= 0.9,
    });
    let Sizes { rounds, jobs, ill, pods, .. } = sizes;
    table.notes.push(format!(
        "{rounds} rounds; each harvests {jobs} Jobs beside {ill} disturbed ones of each kind (one Job of {pods} pods), and \
         {jobs} Jobs beside as many with which nothing is wrong. All have a log of {LOG} bytes, on the same two nodes."
    ));
    table.notes.push(
        "What limits: the cores, which the disturbed Jobs share. Those that cost more calls than a Job with which nothing \
         is wrong (two tries to store, a thousand logs) show as such."
            .to_owned(),
    );
    Ok(table)
}

/// Namespaces that a comparison takes.
fn spaces(troubles: &[Trouble]) -> usize {
    3 + troubles.len()
}

impl Ground {
    /// Starts it, with so many namespaces to use up.
    ///
    /// # Errors
    /// If anything does not start.
    pub async fn new(namespaces: usize) -> Result<Self> {
        let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await?;
        // Nobody listens there: the first port is reserved.
        let configuration = json!({"cloudEventSinks": [{"name": DOWN, "url": "http://127.0.0.1:1/in"}]});
        let options = PairOptions {
            log: "warn".to_owned(),
            sink_configuration: Some(configuration.to_string()),
            ..PairOptions::default()
        };
        let pair = Pair::install(&cluster, options).await?;
        let made = stream::iter(0..namespaces).map(|_| cluster.namespace("beside")).buffer_unordered(8);
        let namespaces = made.try_collect().await?;
        // Statuses are written by us: neither controllers nor nodes have a say.
        cluster.component(Component::ControllerManager)?.stop()?;
        cluster.component(Component::Kwok)?.stop()?;
        Ok(Self { namespaces, used: 0, pair, cluster })
    }

    /// So many namespaces as one comparison with these troubles takes.
    pub fn wants(troubles: &[Trouble]) -> usize {
        spaces(troubles)
    }

    /// Harvests a batch without trouble, and then one beside it. The trouble stays, see [`Self::calm`].
    ///
    /// # Errors
    /// If anything does not run, a result is missing, or the trouble is none.
    pub async fn compare(&mut self, troubles: &[Trouble], sizes: Sizes) -> Result<Compared> {
        let without = self.without(troubles, sizes).await?;
        let (beside, places) = self.beside(troubles, sizes).await?;
        Ok(Compared { beside, without, places })
    }

    /// Harvests a batch by itself, which nobody is told of, or which a receiver that is down should be.
    ///
    /// # Errors
    /// If anything does not run, or a result is missing.
    pub(super) async fn harvest(&mut self, trouble: Option<Trouble>, jobs: usize) -> Result<()> {
        let (client, namespace) = (self.cluster.client(), self.namespace()?);
        self.seed(&namespace, "ill", jobs, true).await?;
        match trouble {
            Some(trouble) => self.begin(trouble, &namespace).await?,
            None => ask_for_results(&client, &namespace).await?,
        }
        harvested(&client, &namespace, jobs).await
    }

    /// Jobs per second beside as many with which nothing is wrong as there would be disturbed ones.
    async fn without(&mut self, troubles: &[Trouble], sizes: Sizes) -> Result<f64> {
        let (alone, company) = (self.namespace()?, self.namespace()?);
        let count = |trouble: &Trouble| if *trouble == Trouble::ManyPods { 1 } else { sizes.ill };
        self.seed(&company, "well", troubles.iter().map(count).sum(), true).await?;
        self.seed(&alone, "well", sizes.jobs, true).await?;
        let client = self.cluster.client();
        ask_for_results(&client, &company).await?;
        let begin = Instant::now();
        ask_for_results(&client, &alone).await?;
        harvested(&client, &alone, sizes.jobs).await?;
        let without = sizes.jobs as f64 / begin.elapsed().as_secs_f64();
        harvested(&client, &company, troubles.iter().map(count).sum()).await?;
        Ok(without)
    }

    /// Jobs per second beside disturbed ones, and where these are.
    async fn beside(&mut self, troubles: &[Trouble], sizes: Sizes) -> Result<(f64, Vec<(Trouble, String)>)> {
        let (client, beside) = (self.cluster.client(), self.namespace()?);
        self.seed(&beside, "well", sizes.jobs, true).await?;
        let mut places = Vec::new();
        for trouble in troubles {
            let namespace = self.namespace()?;
            self.prepare(*trouble, &namespace, sizes).await?;
            places.push((*trouble, namespace));
        }
        for (trouble, namespace) in &places {
            self.begin(*trouble, namespace).await?;
        }
        let deletions = places.iter().filter(|(trouble, _)| *trouble == Trouble::Deleted);
        let deletions = deletions.map(|(_, namespace)| self.delete(namespace, sizes.ill));
        let deletions = futures::future::try_join_all(deletions);
        let measured = async {
            let begin = Instant::now();
            ask_for_results(&client, &beside).await?;
            harvested(&client, &beside, sizes.jobs).await?;
            Ok(sizes.jobs as f64 / begin.elapsed().as_secs_f64())
        };
        let (beside, _) = futures::future::try_join(measured, deletions).await?;
        for (trouble, namespace) in &places {
            let none = matches!(trouble, Trouble::Quota | Trouble::Terminating);
            if none && !self.results(namespace).await?.is_empty() {
                return Err(Error::Invalid(format!("{} lets results in", trouble.name())));
            }
        }
        Ok((beside, places))
    }

    /// Ends the trouble: what hangs has come to an end, and nobody asks for the rest any more.
    ///
    /// # Errors
    /// If what hangs does not come to an end.
    pub async fn calm(&self, places: &[(Trouble, String)]) -> Result<()> {
        for (trouble, namespace) in places {
            if matches!(trouble, Trouble::Hanging | Trouble::ManyPods | Trouble::ReceiverDown) {
                let jobs = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
                let all = send(&self.cluster.client(), "GET", &jobs, &Value::Null).await?;
                let wanted = all["items"].as_array().map_or(0, Vec::len);
                wait_for(PATIENCE, &format!("the results of {}", trouble.name()), || async {
                    let now = self.results(namespace).await.map_err(|error| error.to_string())?.len();
                    if now == wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
                })
                .await?;
            }
            let policy = format!("/apis/job-handler.io/v1alpha1/namespaces/{namespace}/jobpolicies/bench");
            send(&self.cluster.client(), "DELETE", &policy, &Value::Null).await?;
        }
        Ok(())
    }

    /// The results of a namespace.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn results(&self, namespace: &str) -> Result<Vec<ConfigMap>> {
        let made = ListParams::default().labels("job-handler/created=true");
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), namespace);
        Ok(api.list(&made).await.map_err(Error::api("listing results"))?.items)
    }

    fn namespace(&mut self) -> Result<String> {
        let next = self.namespaces.get(self.used);
        self.used += 1;
        let none = || Error::Invalid("no namespace is left".to_owned());
        Ok(next.ok_or_else(none)?.name().to_owned())
    }

    async fn seed(&self, namespace: &str, prefix: &str, jobs: usize, finished: bool) -> Result<()> {
        let seeded = Seed {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            jobs,
            groups: None,
            log_bytes: Some(LOG),
            ttl: None,
            finished,
        };
        seed::seed(&self.cluster, &seeded).await
    }

    /// Jobs that have finished, in a namespace where something is going to be wrong.
    async fn prepare(&self, trouble: Trouble, namespace: &str, sizes: Sizes) -> Result<()> {
        let client = self.cluster.client();
        match trouble {
            Trouble::Hanging => {
                self.seed(namespace, "ill", sizes.ill, false).await?;
                let hang = json!({"metadata": {"annotations": {format!("{PREFIX}log-hang"): "true"}}});
                for n in 0..sizes.ill {
                    let pod = format!("/api/v1/namespaces/{namespace}/pods/ill-{n:06}-pod");
                    send(&client, "PATCH", &pod, &hang).await?;
                    finish(&client, namespace, &format!("ill-{n:06}")).await?;
                }
            }
            Trouble::ManyPods => self.seed_many(namespace, sizes.pods).await?,
            Trouble::Quota => {
                self.seed(namespace, "ill", sizes.ill, true).await?;
                let none = json!({"count/configmaps": "0"});
                let quotas = format!("/api/v1/namespaces/{namespace}/resourcequotas");
                let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": none}});
                send(&client, "POST", &quotas, &quota).await?;
                // The controller that would is not there.
                let status = json!({"status": {"hard": none, "used": none}});
                send(&client, "PATCH", &format!("{quotas}/full/status"), &status).await?;
            }
            _ => self.seed(namespace, "ill", sizes.ill, true).await?,
        }
        if trouble == Trouble::Admission {
            self.refuse_logs(namespace).await?;
        }
        Ok(())
    }

    async fn seed_many(&self, namespace: &str, pods: usize) -> Result<()> {
        // The first is the Job's own, the others are made for it.
        self.seed(namespace, "ill", 1, false).await?;
        let client = self.cluster.client();
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs/ill-000000");
        let job = send(&client, "GET", &path, &Value::Null).await?;
        let all = format!("/api/v1/namespaces/{namespace}/pods");
        let made = stream::iter(1..pods).map(|n| {
            let (pod, status) = seed::pod(&job, "ill-000000", &format!("node-{}", n % 2), LOG);
            let (client, all) = (client.clone(), all.clone());
            async move {
                let (mut pod, name) = (pod, format!("ill-{n:06}-pod"));
                pod["metadata"]["name"] = name.clone().into();
                send(&client, "POST", &all, &pod).await?;
                send(&client, "PATCH", &format!("{all}/{name}/status"), &status).await
            }
        });
        made.buffer_unordered(WRITERS).try_collect::<Vec<_>>().await?;
        finish(&client, namespace, "ill-000000").await
    }

    /// Asks for the results of the Jobs that were prepared.
    async fn begin(&self, trouble: Trouble, namespace: &str) -> Result<()> {
        let client = self.cluster.client();
        if trouble == Trouble::ReceiverDown {
            let policy = json!({
                "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
                "metadata": {"name": "bench", "namespace": namespace},
                "spec": {"results": {}, "cloudEventSinks": [{"name": DOWN}]},
            });
            let policies = format!("/apis/job-handler.io/v1alpha1/namespaces/{namespace}/jobpolicies");
            return send(&client, "POST", &policies, &policy).await.map(drop);
        }
        ask_for_results(&client, namespace).await?;
        if trouble == Trouble::Terminating {
            // It stays so: the controller that would empty it is not there.
            send(&client, "DELETE", &format!("/api/v1/namespaces/{namespace}"), &Value::Null).await?;
        }
        Ok(())
    }

    async fn delete(&self, namespace: &str, jobs: usize) -> Result<()> {
        let client = self.cluster.client();
        for n in 0..jobs {
            let job = format!("/apis/batch/v1/namespaces/{namespace}/jobs/ill-{n:06}");
            send(&client, "DELETE", &format!("{job}?propagationPolicy=BackgroundServer"), &Value::Null)
                .await?;
        }
        Ok(())
    }

    /// An admission policy that refuses ConfigMaps with logs.
    async fn refuse_logs(&self, namespace: &str) -> Result<()> {
        let client = self.cluster.client();
        let group = "/apis/admissionregistration.k8s.io/v1";
        let name = format!("no-logs-{namespace}");
        let policy = json!({
            "metadata": {"name": name},
            "spec": {"failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]},
                "validations": [{"expression": "!has(object.data) || !('logs' in object.data)",
                    "message": "no logs here"}]},
        });
        send(&client, "POST", &format!("{group}/validatingadmissionpolicies"), &policy).await?;
        let binding = json!({
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector":
                    {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}},
        });
        send(&client, "POST", &format!("{group}/validatingadmissionpolicybindings"), &binding).await?;
        let probe = json!({"metadata": {"name": "probe"}, "data": {"logs": "x"}});
        let maps = format!("/api/v1/namespaces/{namespace}/configmaps?dryRun=All");
        wait_for(PATIENCE, "the admission policy to be in force", || async {
            match send(&client, "POST", &maps, &probe).await {
                Err(_) => Ok(()),
                Ok(_) => Err("a log is admitted"),
            }
        })
        .await
    }
}
