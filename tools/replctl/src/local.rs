//! Commands that need no daemon: the key, metadata on a disk, a look at the configuration.

use std::path::Path;

use replicator::cluster::check_etcd;
use replicator::config::{
    ClusterConfig, Directory, FileProblem, NodeConfig, ResourceConfig, services,
};
use replicator::create::{self, CreateRequest, Created};
use replicator::dump;
use replicator::fence::agent;
use replicator::hooks;
use replicator::key::ClusterKey;
use replicator::metadata_end::RememberedEnds;
use serde_json::json;

use crate::arguments::{Arguments, Create};
use crate::show::{self, bytes};
use crate::{EXIT_DONE, EXIT_NOT_SAFE, EXIT_REFUSED, EXIT_USAGE, Failure};

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(EXIT_REFUSED, error)
}

fn find<'a>(config: &'a ClusterConfig, name: &str) -> Result<&'a ResourceConfig, Failure> {
    config.resource(name).ok_or_else(|| {
        let names: Vec<&str> = config.resources.iter().map(|it| it.name.as_str()).collect();
        let text =
            format!("there is no resource {name}; the configuration has: {}", names.join(", "));
        Failure::new(EXIT_USAGE, text)
    })
}

fn refuse_witness(node: &NodeConfig) -> Result<(), Failure> {
    if node.witness {
        return Err(Failure::new(
            EXIT_USAGE,
            format!("{} is a witness: it has no disks", node.name),
        ));
    }
    Ok(())
}

/// `init`: the key, or the origin of a resource.
pub fn init(
    config: &ClusterConfig,
    node: &NodeConfig,
    resource: Option<&str>,
    from: Option<&str>,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    let (Some(resource), Some(from)) = (resource, from) else {
        ClusterKey::create(&node.key).map_err(refused)?;
        return Ok(key_made(config, &node.key, arguments));
    };
    let resource = find(config, resource)?;
    if config.node(from).is_none_or(|node| node.witness) {
        return Err(Failure::new(EXIT_USAGE, format!("{from} is no data node")));
    }
    if from != node.name {
        let text = format!(
            "the origin is recorded on its own disk: run this command on {from} (this is {})",
            node.name
        );
        return Err(refused(text));
    }
    create::name_origin(node, resource).map_err(refused)?;
    let text = format!(
        "{from} is the origin of {0}.\nnext: replctl up {0} (or start the daemon), then replctl \
         promote {0}",
        resource.name
    );
    say(arguments, &text, json!({ "resource": resource.name, "origin": from }));
    Ok(EXIT_DONE)
}

fn key_made(config: &ClusterConfig, path: &Path, arguments: &Arguments) -> u8 {
    let mut text =
        format!("made the key of cluster {}: {}\nnext:\n", config.cluster, path.display());
    for node in config.data_nodes() {
        if node.key == path {
            continue;
        }
        text += &format!("  copy it to {} for node {}\n", node.key.display(), node.name);
    }
    text += &format!(
        "  copy it to every other node, for example: scp -p {0} NODE:{0}\n  make the replicas: \
         replctl create RESOURCE --origin on the node with the data,\n                     replctl \
         create RESOURCE on the others\n  then start the daemons",
        path.display()
    );
    say(arguments, &text, json!({ "key": path }));
    EXIT_DONE
}

fn say(arguments: &Arguments, text: &str, value: serde_json::Value) {
    if arguments.json {
        println!("{value}");
    } else {
        println!("{text}");
    }
}

/// `create`: metadata on a disk.
pub fn create(
    config: &ClusterConfig,
    node: &NodeConfig,
    wish: &Create,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    refuse_witness(node)?;
    let resource = find(config, &wish.resource)?;
    let configured = &resource.copy_on(&node.name).metadata;
    if let Some(path) = &wish.external
        && configured.as_ref() != Some(path)
    {
        let text = format!(
            "the daemon must find the metadata too: write metadata.{} = \"{}\" into [resource.{}] \
             of {} first",
            node.name,
            path.display(),
            resource.name,
            config.path.display()
        );
        return Err(refused(text));
    }
    let key = ClusterKey::load(&node.key).map_err(|error| Failure::new(EXIT_USAGE, error))?;
    let created = create::create(&CreateRequest {
        cluster: config,
        node,
        resource,
        key: &key,
        origin: wish.origin,
        assume_equal: wish.assume_equal,
        destroy: wish.force.clone(),
        size_bytes: wish.size,
        block_bytes: wish.block_size,
        life: wish.life.clone(),
    })
    .map_err(refused)?;
    let value = serde_json::to_value(&created).expect("plain values");
    say(arguments, &describe(config, &created), value);
    Ok(EXIT_DONE)
}

fn describe(config: &ClusterConfig, created: &Created) -> String {
    let Created { resource, node, size_bytes, .. } = created;
    let place = if created.internal { "at the end of the disk" } else { "apart from the data" };
    let mut text = format!(
        "{resource} on {node}: {} of data on {}, {} of metadata {place} ({})\n",
        bytes(*size_bytes),
        created.disk.display(),
        bytes(created.metadata_bytes),
        created.metadata.display()
    );
    for title in &created.kept {
        text += &format!("kept in place: {title}\n");
    }
    for title in &created.given_up {
        text += &format!("given up: {title}\n");
    }
    if created.assume_equal {
        text += "recorded: on your word all disks hold the same data now\n";
    }
    let others: Vec<&str> = config.peers_of(node).iter().map(|peer| peer.name.as_str()).collect();
    text += "next: ";
    if !others.is_empty() {
        text += &format!(
            "replctl create {resource} --size {size_bytes} on {} (the same size everywhere), then ",
            others.join(", ")
        );
    }
    if !created.origin && !created.assume_equal {
        text += "name the node with the data once (create --origin there, or init --from), then ";
    }
    text + "start the daemons"
}

/// `dump`: the metadata on the disk.
pub fn dump(
    config: &ClusterConfig,
    node: &NodeConfig,
    resource: &str,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    refuse_witness(node)?;
    let copy = find(config, resource)?.copy_on(&node.name);
    let remembered = RememberedEnds::of(&node.state_dir, resource);
    let path = copy.metadata.as_deref().unwrap_or(&copy.disk);
    let dump = dump::read(path, &remembered).map_err(refused)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&dump).expect("plain values"));
    } else {
        print!("{}", show::dump(&dump));
    }
    Ok(EXIT_DONE)
}

/// What is wrong with a witness's file beside those of other clusters in its directory, where one
/// process serves all of them. A copy of the file is none of these.
fn beside(config: &ClusterConfig, node: &NodeConfig) -> Vec<String> {
    let directory = config.path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    let Ok(found) = Directory::load(directory, Some(&node.name)) else { return Vec::new() };
    let own = directory.join(config.path.file_name().unwrap_or_default()).display().to_string();
    let is_shared = |it: &&FileProblem| match it {
        FileProblem::Shared { what, .. } => !what.starts_with("the cluster "),
        _ => false,
    };
    let shared = found.problems.iter().filter(is_shared).map(ToString::to_string);
    shared.chain(found.without.iter().cloned()).filter(|it| it.contains(&own)).collect()
}

/// `check`: what the file means, whether key and disks of this node are there, and on wish whether
/// the fence agents work from here.
pub fn check(
    config: &ClusterConfig,
    asks_agents: bool,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    let mut problems = config.warnings.clone();
    let mut good = Vec::new();
    // On a machine that is no node of the file only the file itself can be checked.
    let here = config.choose_node(arguments.node.as_deref()).ok();
    if let Some(node) = here {
        match ClusterKey::load(&node.key) {
            Err(error) => problems.push(error.to_string()),
            Ok(key) => {
                let (wrong, right) = check_etcd(config, &key);
                problems.extend(wrong);
                good.extend(right);
            }
        }
        for resource in config.resources.iter().filter(|_| !node.witness) {
            let copy = resource.copy_on(&node.name);
            for path in [Some(&copy.disk), copy.metadata.as_ref()].into_iter().flatten() {
                if let Err(error) = std::fs::metadata(path) {
                    problems.push(format!("{}: {}: {error}", resource.name, path.display()));
                }
            }
        }
    }
    if here.is_some() {
        problems.extend(config.hooks.as_ref().and_then(hooks::missing));
    }
    match here {
        Some(node) if node.witness => problems.extend(beside(config, node)),
        Some(_) => problems.extend(services::local::warnings(config)),
        None => {}
    }
    let fence = here.and_then(|node| config.fence_of_peer(&node.name)).filter(|_| !asks_agents);
    if let Some((peer, fence)) = fence {
        let missing = agent::missing(fence);
        problems.extend(missing.map(|problem| format!("fence of {}: {problem}", peer.name)));
    }
    for node in config.nodes.iter().filter(|_| asks_agents) {
        let found = node.fence.as_ref().map(|fence| agent::check(fence, &node.name));
        let named = |problem| format!("fence of {}: {problem}", node.name);
        problems.extend(found.unwrap_or_default().into_iter().map(named));
    }
    if arguments.json {
        let nodes: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let resources: Vec<&str> = config.resources.iter().map(|it| it.name.as_str()).collect();
        let value = json!({
            "cluster": config.cluster, "nodes": nodes, "resources": resources,
            "node": here.map(|node| &node.name), "problems": problems, "good": good,
        });
        println!("{value}");
    } else {
        for line in &good {
            println!("{line}");
        }
        print!("{}", show::config(config, here, &problems));
    }
    Ok(if problems.is_empty() { EXIT_DONE } else { EXIT_NOT_SAFE })
}
