//! How long a unit's own file lets it start and stop: its author knows best, and so does whoever
//! wrote a drop-in for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Builder;
use tokio::time::timeout;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;

use super::Systemd;
use super::bus::{SYSTEMD, refused};
use crate::services::Failure;

const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// `infinity`.
const ENDLESS: u64 = u64::MAX;

/// What a service unit is allowed; none: without end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitLimits {
    /// `TimeoutStartSec=`.
    pub start: Option<Duration>,
    /// `TimeoutStopSec=`.
    pub stop: Option<Duration>,
    /// `Type=oneshot`, whose start has no end where its file says nothing about it.
    pub is_oneshot: bool,
}

impl Systemd {
    /// What systemd allows a service unit; none for units of other kinds and for one that is not
    /// there.
    pub async fn limits(&self, unit: &str) -> Result<Option<UnitLimits>, Failure> {
        if !unit.ends_with(".service") {
            return Ok(None);
        }
        let asked = self.bus.call("LoadUnit", |manager| async move {
            let path = manager.load_unit(unit).await?;
            let properties = PropertiesProxy::builder(manager.inner().connection())
                .destination(SYSTEMD)
                .path(path)
                .cache_properties(zbus::proxy::CacheProperties::No)
                .build()
                .await?;
            properties.get_all(InterfaceName::try_from(SERVICE)?).await.map_err(Into::into)
        });
        let all = asked.await?.map_err(|(name, text)| refused(unit, &name, &text))?;
        let time = |name: &str| all.get(name).and_then(|value| u64::try_from(value).ok());
        let (Some(start), Some(stop)) = (time("TimeoutStartUSec"), time("TimeoutStopUSec")) else {
            return Ok(None);
        };
        let kind = all.get("Type").and_then(|value| <&str>::try_from(value).ok());
        let limit = |us: u64| (us != ENDLESS).then(|| Duration::from_micros(us));
        let is_oneshot = kind == Some("oneshot");
        Ok(Some(UnitLimits { start: limit(start), stop: limit(stop), is_oneshot }))
    }
}

/// What systemd allows these units, as far as it says that within `patience`. Blocks.
pub fn limits_now(units: &[&str], patience: Duration) -> BTreeMap<String, UnitLimits> {
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else {
        return BTreeMap::new();
    };
    // Nothing is written by it.
    let systemd = Systemd::at(None, PathBuf::new(), "", "");
    runtime.block_on(async {
        let ask = async |unit: &str| match timeout(patience, systemd.limits(unit)).await {
            Ok(Ok(limits)) => limits.map(|limits| (unit.to_owned(), limits)),
            Ok(Err(failure)) => {
                tracing::info!("the deadlines of {unit} are not known: {}", failure.why);
                None
            }
            Err(_) => {
                tracing::warn!("the deadlines of {unit} are not known: systemd is silent");
                None
            }
        };
        join_all(units.iter().map(|unit| ask(unit))).await.into_iter().flatten().collect()
    })
}
