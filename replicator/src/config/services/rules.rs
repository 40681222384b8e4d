//! What services may not be to each other, to the nodes and to the resources: mistakes that show
//! only when the whole file is known.

use std::collections::BTreeMap;
use std::ops::Range;

use failover::core::services::{Kind, Place, ServiceSpec};

use super::super::reader::Problems;
use super::super::{AttachWish, NodeConfig, ResourceConfig};
use super::ServicePlace;

/// Checks all resources together. What is certainly wrong becomes a problem, what only looks like a
/// mistake a warning.
pub fn check(
    nodes: &[NodeConfig],
    resources: &[ResourceConfig],
    problems: &Problems,
    warnings: &Problems,
) {
    let mut taken = Taken { owners: BTreeMap::new(), problems };
    for resource in resources {
        for (spec, place) in services_of(resource) {
            taken.claim(resource, spec, place);
            own_address(nodes, spec, place, problems);
        }
        file_systems(resource, problems, warnings);
        company(resource, resources, problems, warnings);
    }
}

fn services_of(resource: &ResourceConfig) -> impl Iterator<Item = (&ServiceSpec, &ServicePlace)> {
    resource.services.specs.iter().zip(&resource.services.places)
}

/// What can be in one place only.
struct Taken<'a> {
    owners: BTreeMap<String, String>,
    problems: &'a Problems,
}

impl Taken<'_> {
    fn claim(&mut self, resource: &ResourceConfig, spec: &ServiceSpec, place: &ServicePlace) {
        let (thing, help) = match &spec.kind {
            Kind::Address { address, .. } => {
                (address.to_string(), "every floating address belongs to one service")
            }
            Kind::Filesystem { mount_point, .. } => {
                (mount_point.clone(), "every mount point belongs to one service")
            }
            Kind::Systemd { unit } => {
                (unit.clone(), "every unit belongs to one service; start two with a target")
            }
            _ => return,
        };
        // What runs where the primary is and what runs where it is not may be the same unit.
        let key = format!("{thing} {}", u8::from(spec.place == Place::Secondary));
        if let Some(earlier) = self.owners.insert(key, resource.name.clone()) {
            let what = format!("{thing} is used twice");
            let help = format!("resource {earlier} has it already; {help}");
            self.problems.add(place.span.clone(), what, help);
        }
    }
}

fn own_address(
    nodes: &[NodeConfig],
    spec: &ServiceSpec,
    place: &ServicePlace,
    problems: &Problems,
) {
    let Kind::Address { address, .. } = &spec.kind else { return };
    let owner = nodes.iter().find(|node| node.addresses.iter().any(|own| own.ip() == *address));
    if let Some(owner) = owner {
        let what = format!("{address} is the address of node {} itself", owner.name);
        let help = "a floating address is one more: it goes from node to node, and no node may \
                    have it on its own";
        problems.add(place.span.clone(), what, help);
    }
}

/// File systems need the device, come before what uses them, and one inside of the other after it.
fn file_systems(resource: &ResourceConfig, problems: &Problems, warnings: &Problems) {
    let mut earlier: Vec<(&str, u16, bool)> = Vec::new();
    let mut user: Option<(&ServiceSpec, u16)> = None;
    for (spec, place) in services_of(resource) {
        let span = place.span.clone();
        match &spec.kind {
            Kind::Filesystem { mount_point, fs_type, .. } => {
                if resource.attach == AttachWish::None {
                    let what =
                        format!("{} has no device to mount: attach = \"none\"", resource.name);
                    problems.add(span.clone(), what, "remove `attach`, or this service");
                }
                let is_btrfs = fs_type.as_deref() == Some("btrfs");
                if let Some((other, ..)) = earlier.iter().find(|(.., btrfs)| !(is_btrfs && *btrfs))
                {
                    let what = format!("{mount_point} and {other} would mount the same device");
                    let help = "one resource has one device: make a second resource, or use \
                                directories of one file system";
                    problems.add(span.clone(), what, help);
                } else if let Some(other) = hidden_by(mount_point, spec.step, &earlier) {
                    let what = format!("{mount_point} hides {other}, which is mounted before");
                    problems.add(span.clone(), what, format!("put it before {other}"));
                }
                if let Some((user, _)) = user.filter(|(_, step)| *step <= spec.step) {
                    let what = format!("{} starts before {mount_point} is mounted", user.name);
                    let help = "services start from the top: put the file system first";
                    warnings.add(span, what, help);
                }
                earlier.push((mount_point, spec.step, is_btrfs));
            }
            Kind::Systemd { .. } | Kind::Ocf { .. } | Kind::Command { .. }
                if spec.place == Place::Primary && user.is_none() =>
            {
                if let Some((mount_point, ..)) =
                    earlier.iter().find(|(_, step, _)| *step == spec.step)
                {
                    let what = format!("{} starts before {mount_point} is mounted", spec.name);
                    let help = "what is in one `parallel` group starts together: put the file \
                                system in front of it";
                    warnings.add(span, what, help);
                }
                user = Some((spec, spec.step));
            }
            _ => {}
        }
    }
}

fn hidden_by<'a>(
    mount_point: &str,
    step: u16,
    earlier: &[(&'a str, u16, bool)],
) -> Option<&'a str> {
    let inside =
        |other: &str| other.strip_prefix(mount_point).is_some_and(|it| it.starts_with('/'));
    earlier.iter().find(|(other, at, _)| inside(other) && *at <= step).map(|(other, ..)| *other)
}

/// `with`: another resource, and in the end one that goes with nobody.
fn company(
    resource: &ResourceConfig,
    resources: &[ResourceConfig],
    problems: &Problems,
    warnings: &Problems,
) {
    let services = &resource.services;
    let Some(with) = services.with.as_deref() else { return };
    let span: Range<usize> = services.with_span.clone();
    if with == resource.name {
        problems.add(span, format!("{with} goes with itself"), "name another resource");
        return;
    }
    let names: Vec<&str> = resources.iter().map(|other| other.name.as_str()).collect();
    if !names.contains(&with) {
        let others: Vec<&str> =
            names.iter().copied().filter(|name| *name != resource.name).collect();
        let help = match super::super::suggestion(with, &others) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None if others.is_empty() => "there is no other resource: remove it".into(),
            None => format!("the other resources are: {}", others.join(", ")),
        };
        problems.add(span, format!("`with` names {with:?}, which is no resource"), help);
        return;
    }
    if !services.prefer.is_empty() || !services.avoid.is_empty() {
        let what = format!("{}: `prefer` and `avoid` have no effect beside `with`", resource.name);
        warnings.add(span.clone(), what, format!("say it in [resource.{with}]"));
    }
    let mut chain = vec![resource.name.as_str()];
    let mut next = Some(with);
    while let Some(name) = next {
        if chain.contains(&name) {
            let what = format!("`with` goes in a circle: {} -> {name}", chain.join(" -> "));
            problems.add(span, what, "one of them must be the first");
            return;
        }
        chain.push(name);
        let found = resources.iter().find(|other| other.name == name);
        next = found.and_then(|other| other.services.with.as_deref());
    }
}
