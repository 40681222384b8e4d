//! What `replctl check` finds out about etcd: are its members there, is the password right, is what
//! lies below the prefix this cluster's register?

use std::io;
use std::sync::Arc;
use std::time::Duration;

use failover_core::Time;
use failover_core::etcd::{Alien, Answer, Ask, Known, Trouble};
use failover_core::verdict::Verdict;
use tokio::runtime::Builder;

use super::client::{Client, nonsense};
use super::form::Form;
use super::{EndpointReport, EtcdConfig, FileProblem};

/// A password may take etcd a while on a busy machine, and nobody waits but an operator.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug)]
pub struct EtcdCheck {
    /// Every endpoint.
    pub endpoints: Vec<EndpointReport>,
    /// The register in words; or why it cannot be used.
    pub register: Result<String, Verdict>,
}

/// Why nothing could be asked.
#[derive(Debug)]
pub enum CheckError {
    /// The system refuses what is needed.
    System(io::Error),
    /// A file of `[etcd]` cannot be used.
    File(FileProblem),
}

/// Asks every endpoint, and reads the register once.
pub fn check(config: &EtcdConfig) -> Result<EtcdCheck, CheckError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(CheckError::System)?.block_on(async {
        let client = Arc::new(Client::new(config));
        let mut problem = client.reload().await;
        if let (None, Some(login)) = (&problem, &config.login) {
            problem = login.password().await.err();
        }
        if let Some(problem) = problem {
            return Err(CheckError::File(problem));
        }
        let asked = (0..client.endpoint_count()).map(|index| client.look(index, PATIENCE));
        let endpoints = futures_util::future::join_all(asked).await;
        let register = match one_store(&endpoints) {
            Ok(()) => read(&client, config).await,
            Err(verdict) => Err(verdict),
        };
        Ok(EtcdCheck { endpoints, register })
    })
}

/// All endpoints belong to one etcd cluster.
fn one_store(endpoints: &[EndpointReport]) -> Result<(), Verdict> {
    let mut reachable = endpoints.iter().filter(|it| it.is_reachable);
    let Some(first) = reachable.next() else { return Ok(()) };
    match reachable.find(|it| it.store != first.store) {
        None => Ok(()),
        Some(other) => Err(Verdict::new(
            Time(0),
            "two_stores",
            "etcd",
            format!("{} and {} belong to different etcd clusters", first.address, other.address),
            "name only members of one etcd cluster in [etcd] endpoints".into(),
        )),
    }
}

async fn read(client: &Arc<Client>, config: &EtcdConfig) -> Result<String, Verdict> {
    let form = Form::new(config);
    let of =
        |trouble: Trouble| Verdict::new(Time(0), &trouble.code, "etcd", trouble.why, trouble.next);
    let (path, body) = form.request(&Ask::Read);
    let bytes = client.post(path, &body, PATIENCE).await.map_err(of)?;
    let contents = match form.answer(&Ask::Read, &bytes) {
        Ok(Answer::Contents(contents)) => contents,
        Ok(other) => return Err(of(nonsense(format!("{other:?}")))),
        Err(why) => return Err(of(nonsense(why))),
    };
    if let Some(alien) = Alien::find(&config.cluster, &contents, Known::default()) {
        return Err(alien.verdict(Time(0)));
    }
    Ok(match contents.state {
        None => {
            format!("no register below {} yet: it begins with all nodes running", config.prefix)
        }
        Some((_, state)) => format!("register revision {} below {}", state.revision, config.prefix),
    })
}
