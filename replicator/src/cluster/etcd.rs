//! etcd as the register: from the file to the client, and what `status` and `check` tell of it.

use std::sync::Arc;
use std::time::Duration;

use failover::etcd::{CheckError, EndpointReport, EtcdConfig, FileProblem, Login};
use serde::{Deserialize, Serialize};

use super::refusal;
use crate::config::ClusterConfig;
use crate::control::RefusalReport;
use crate::fence::agent::password;
use crate::key::ClusterKey;

/// A database of etcd beyond this is a warning: at 2 GiB, by default, it takes nothing more.
const DATABASE_BYTES_MAX: u64 = 1 << 30;

/// etcd as this node reaches it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EtcdReport {
    /// Our keys begin with it.
    pub prefix: String,
    /// Every endpoint of the file.
    pub endpoints: Vec<EtcdEndpoint>,
    /// How long ago etcd answered a question about the register; nothing: never.
    pub answered_ms: Option<u64>,
    /// Why it does not, or why what it has is refused.
    pub trouble: Option<RefusalReport>,
}

/// One endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EtcdEndpoint {
    /// Its address.
    pub address: String,
    /// `leader`, `follower`, `no_leader` or `unreachable`.
    pub state: String,
    /// Its version.
    pub version: String,
    /// The way there and back in microseconds; 0: not measured.
    pub round_trip_us: u64,
    /// Why it is not reachable.
    pub why: String,
}

impl From<EndpointReport> for EtcdEndpoint {
    fn from(found: EndpointReport) -> Self {
        let state = match (found.is_reachable, found.has_leader, found.is_leader) {
            (false, ..) => "unreachable",
            (true, false, _) => "no_leader",
            (true, true, true) => "leader",
            (true, true, false) => "follower",
        };
        Self {
            address: found.address,
            state: state.into(),
            version: found.version,
            round_trip_us: found.round_trip_us,
            why: found.why,
        }
    }
}

/// What the client of etcd is told; none when the nodes keep the register.
pub fn etcd_config(config: &ClusterConfig, key: &ClusterKey) -> Option<EtcdConfig> {
    let site = config.etcd.as_ref()?;
    let login = site.user.clone().zip(site.password_file.clone());
    let login = login.map(|(user, password_file)| Login { user, password_file, read: password });
    let key = key.clone();
    Some(EtcdConfig {
        endpoints: site.endpoints.clone(),
        tls: site.tls.clone(),
        prefix: site.prefix.clone(),
        login,
        cluster: config.cluster.clone(),
        authenticate: Arc::new(move |parts| key.authenticate(parts)),
        lease: Duration::from_millis(config.lease_ms),
    })
}

/// A file of `[etcd]` that cannot be used, as other trouble with etcd is shown.
pub fn file_refusal(problem: FileProblem) -> RefusalReport {
    let FileProblem { why, next, .. } = problem;
    RefusalReport { code: "file".into(), rule: "etcd".into(), why, next }
}

/// What is wrong with etcd, in words, for `replctl check`; and what is right.
pub fn check_etcd(config: &ClusterConfig, key: &ClusterKey) -> (Vec<String>, Vec<String>) {
    let (Some(site), Some(etcd)) = (&config.etcd, etcd_config(config, key)) else {
        return (Vec::new(), Vec::new());
    };
    let found = match failover::etcd::check(&etcd) {
        Ok(found) => found,
        Err(CheckError::File(FileProblem { path, why, next })) => {
            return (vec![format!("{}[etcd] {why}; {next}", site.place_of(&path))], Vec::new());
        }
        Err(CheckError::System(error)) => {
            return (vec![format!("[etcd] cannot be asked: {error}")], Vec::new());
        }
    };
    let (mut problems, mut good) = (Vec::new(), Vec::new());
    for found in &found.endpoints {
        if found.database_bytes > DATABASE_BYTES_MAX {
            let mib = found.database_bytes >> 20;
            problems.push(format!(
                "the database of etcd {} has {mib} MiB, of 2048 by default: etcdctl compact and \
                 defrag, and run etcd with --auto-compaction-retention=1",
                found.address
            ));
        }
    }
    for endpoint in found.endpoints.into_iter().map(EtcdEndpoint::from) {
        let EtcdEndpoint { address, state, version, why, .. } = endpoint;
        match state.as_str() {
            "unreachable" => problems.push(format!("etcd {address} is unreachable: {why}")),
            "no_leader" => problems.push(format!("etcd {address} has no leader, so no majority")),
            _ => good.push(format!("etcd {address}: {version}, {state}")),
        }
    }
    match found.register {
        Ok(register) => good.push(format!("etcd: {register}")),
        Err(verdict) => {
            let refusal = refusal(&verdict);
            problems.push(format!("{}; {}", refusal.why, refusal.next));
        }
    }
    (problems, good)
}
