//! What operators order of services. What is to be stopped, and maintenance, is in the register
//! where there is one, so that it holds on whichever node is primary; restarts and failures are
//! matters of the node that is asked.

use std::sync::Arc;

use failover::core::command::Switch;
use failover::core::services::Order;

use super::unknown_resource;
use crate::control::{RefusalReport, Reply};
use crate::daemon::Daemon;
use crate::resource::Resource;

type Found<'a> = Result<&'a Arc<Resource>, RefusalReport>;

fn find<'a>(daemon: &'a Daemon, resource: &str, service: Option<&str>) -> Found<'a> {
    let found = daemon.resource(resource).ok_or_else(|| unknown_resource(daemon, resource))?;
    found.check_service(service)?;
    Ok(found)
}

/// Notes it in the register, where there is one.
fn switch(daemon: &Daemon, resource: &str, switch: Switch) -> Result<(), RefusalReport> {
    match &daemon.control_plane {
        Some(plane) => plane.switch(resource, switch),
        None => Ok(()),
    }
}

fn done(result: Result<Reply, RefusalReport>) -> Reply {
    result.unwrap_or_else(Reply::Refused)
}

pub(super) fn start(daemon: &Daemon, resource: &str, service: Option<String>) -> Reply {
    done(find(daemon, resource, service.as_deref()).and_then(|found| {
        switch(daemon, resource, Switch::Off { service: service.clone(), is_off: false })?;
        Ok(found.order_services(&Order::Start, service.as_deref()))
    }))
}

pub(super) fn stop(daemon: &Daemon, resource: &str, service: Option<String>) -> Reply {
    done(find(daemon, resource, service.as_deref()).and_then(|found| {
        switch(daemon, resource, Switch::Off { service: service.clone(), is_off: true })?;
        Ok(found.order_services(&Order::Stop, service.as_deref()))
    }))
}

pub(super) fn restart(daemon: &Daemon, resource: &str, service: Option<&str>) -> Reply {
    done(find(daemon, resource, service).and_then(|found| {
        if !found.runs_any(service) {
            let primary = found.known_primary().unwrap_or_default();
            let next = if primary.is_empty() {
                "wait until there is a primary: replctl status".to_owned()
            } else {
                format!("give this command on {primary}")
            };
            let why = format!("nothing of that runs on {}", daemon.node_name());
            return Err(RefusalReport::new("not_running_here", why, next));
        }
        Ok(found.order_services(&Order::Restart, service))
    }))
}

pub(super) fn clear(daemon: &Daemon, resource: &str, service: Option<&str>) -> Reply {
    done(find(daemon, resource, service).map(|found| {
        match found.order_services(&Order::Clear, service) {
            Reply::Done(_) => Reply::Done(format!("{} has no bad past", daemon.node_name())),
            other => other,
        }
    }))
}

pub(super) fn maintain(daemon: &Daemon, resource: &str, is_on: bool) -> Reply {
    done(find(daemon, resource, None).and_then(|found| {
        switch(daemon, resource, Switch::Maintenance(is_on))?;
        found.order_services(&|_| Order::Maintenance(is_on), None);
        Ok(Reply::Done(if is_on {
            format!(
                "hands off the services of {resource}: nothing is started, stopped or restarted"
            )
        } else {
            format!("the services of {resource} are looked after again")
        }))
    }))
}
