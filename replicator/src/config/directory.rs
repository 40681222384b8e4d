//! A directory of configuration files: one witness process for many clusters. Each file is the one
//! that the cluster's data nodes have too; what the clusters would share on this machine has to be
//! told apart there.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{ClusterConfig, ConfigError, NodeConfig, UnknownNode};

/// The clusters of a directory.
#[derive(Debug, Default)]
pub struct Directory {
    /// Those that can be served, by the name of their file.
    pub served: Vec<(ClusterConfig, NodeConfig)>,
    /// Why others cannot: one that is wrong costs the others nothing.
    pub problems: Vec<FileProblem>,
    /// What those that are served lack, in words: one address has the pages of one cluster only.
    pub without: Vec<String>,
}

/// Why a file of the directory is not served.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// It is no good configuration.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// It has no such node.
    #[error("{path}: {source}", path = path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// Which one, and those that there are.
        source: UnknownNode,
    },
    /// The node has disks there.
    #[error(
        "{path}: {node} has disks; a directory of configurations is for witnesses: \
         start a data node with its own file", path = path.display()
    )]
    DataNode {
        /// The file.
        path: PathBuf,
        /// The node.
        node: String,
    },
    /// Something belongs to another cluster already.
    #[error(
        "{path}: {what} is that of {other} too; {help}",
        path = path.display(), other = other.display()
    )]
    Shared {
        /// The file.
        path: PathBuf,
        /// What both have.
        what: String,
        /// The file that came first.
        other: PathBuf,
        /// What to write.
        help: String,
    },
}

impl Directory {
    /// Reads every `*.toml` of a directory, in the order of their names.
    pub fn load(directory: &Path, node: Option<&str>) -> io::Result<Self> {
        let mut paths: Vec<PathBuf> = fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
        paths.sort();
        let mut found = Self::default();
        for path in paths {
            match found.read(&path, node) {
                Ok((config, mut node)) => {
                    found.share_pages(&config, &mut node);
                    found.served.push((config, node));
                }
                Err(problem) => found.problems.push(problem),
            }
        }
        Ok(found)
    }

    /// An address that another cluster listens on for HTTP is left to that one.
    fn share_pages(&mut self, config: &ClusterConfig, node: &mut NodeConfig) {
        let (served, mut without) = (&self.served, Vec::new());
        node.http.listen.retain(|at| {
            let clashes = |it: &&(ClusterConfig, NodeConfig)| {
                it.1.http.listen.iter().any(|its| is_same_place(at, its))
            };
            let Some((other, _)) = served.iter().find(clashes) else { return true };
            without.push(format!(
                "{}: its pages (HTTP) would be at {at}, which {} has: those of {} are not served \
                 there; write, in the file of every node of {2}, under [node.{}]: http_port = {}, \
                 or 0 for none",
                config.path.display(),
                other.path.display(),
                config.cluster,
                node.name,
                free_port(served, at.port()),
            ));
            false
        });
        self.without.extend(without);
    }

    fn read(
        &self,
        path: &Path,
        node: Option<&str>,
    ) -> Result<(ClusterConfig, NodeConfig), FileProblem> {
        let config = ClusterConfig::load(path)?;
        let path = path.to_owned();
        let node = match config.choose_node(node) {
            Ok(node) => node.clone(),
            Err(source) => return Err(FileProblem::Node { path, source }),
        };
        if !node.witness {
            return Err(FileProblem::DataNode { path, node: node.name });
        }
        for (other, its_node) in &self.served {
            if let Some((what, help)) = shared((&config, &node), (other, its_node)) {
                let other = other.path.clone();
                return Err(FileProblem::Shared { path, what, other, help });
            }
        }
        Ok((config, node))
    }
}

/// Whether one socket cannot listen beside the other.
fn is_same_place(one: &SocketAddr, other: &SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (is_any || one.ip() == other.ip())
}

/// The first port from this one on at which no other cluster's pages are.
fn free_port(served: &[(ClusterConfig, NodeConfig)], from: u16) -> u16 {
    let is_taken =
        |port: &u16| served.iter().any(|it| it.1.http.listen.iter().any(|at| at.port() == *port));
    (from..=u16::MAX).find(|port| !is_taken(port)).unwrap_or_default()
}

/// What two clusters must not have in common on one machine, and what to write instead.
fn shared(
    (config, node): (&ClusterConfig, &NodeConfig),
    (other, its_node): (&ClusterConfig, &NodeConfig),
) -> Option<(String, String)> {
    let cluster = &config.cluster;
    if *cluster == other.cluster {
        let help = "every cluster needs a name of its own".to_owned();
        return Some((format!("the cluster {cluster}"), help));
    }
    let own = |key: &str, path: &Path| {
        let (name, path) = (&node.name, path.display());
        format!(
            "write, in the file of every node of {cluster}, under [node.{name}]: {key} = \"{path}\""
        )
    };
    if node.state_dir == its_node.state_dir {
        let help = own("state_dir", &node.state_dir.join(cluster));
        return Some((format!("state_dir {}", node.state_dir.display()), help));
    }
    if node.run_dir == its_node.run_dir {
        let help = own("run_dir", &node.run_dir.join(cluster));
        return Some((format!("run_dir {}", node.run_dir.display()), help));
    }
    if node.key == its_node.key {
        let help = own("key", &node.key.with_extension(cluster));
        return Some((format!("key {}", node.key.display()), help));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, file: &str, cluster: &str, own: &[&str]) {
        let own: Vec<String> =
            own.iter().map(|key| format!("{key} = \"/srv/{cluster}/{key}\"\n")).collect();
        let text = format!(
            "cluster = \"{cluster}\"\n[node.alpha]\naddress = \"10.0.0.1\"\n[node.beta]\n\
             address = \"10.0.0.2\"\n[node.gamma]\naddress = \"10.0.0.3\"\nwitness = true\n{}\n\
             [resource.data]\ndisk = \"/dev/vg0/data\"\n",
            own.concat()
        );
        fs::write(directory.join(file), text).unwrap();
    }

    #[test]
    fn a_file_that_is_wrong_costs_the_others_nothing() {
        let directory =
            std::env::temp_dir().join(format!("replicator-directory-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        let all = &["state_dir", "run_dir", "key"];
        write(&directory, "a.toml", "shop", all);
        write(&directory, "b.toml", "blog", all);
        write(&directory, "c.toml", "shop", all);
        write(&directory, "d.toml", "mail", &[]);
        write(&directory, "e.toml", "wiki", &["run_dir", "key"]);
        fs::write(directory.join("f.toml"), "cluster = 7").unwrap();
        fs::write(directory.join("notes.txt"), "no configuration").unwrap();
        let found = Directory::load(&directory, Some("gamma")).unwrap();
        let served: Vec<&str> = found.served.iter().map(|it| it.0.cluster.as_str()).collect();
        assert_eq!(served, ["shop", "blog", "mail"]);
        // All have the same port by default: the first one has the pages.
        let pages: Vec<usize> = found.served.iter().map(|it| it.1.http.listen.len()).collect();
        assert_eq!(pages, [1, 0, 0]);
        let told = &found.without[0];
        for words in [
            "b.toml: its pages (HTTP) would be at 10.0.0.3:7790, which",
            "a.toml has",
            "of every node of blog, under [node.gamma]: http_port = 7791",
        ] {
            assert!(told.contains(words), "{told}");
        }
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("the cluster shop is that of"), "{problems:?}");
        let help = "under [node.gamma]: state_dir = \"/var/lib/replicator/wiki\"";
        assert!(problems[1].contains(help), "{problems:?}");
        assert!(problems[2].contains("f.toml"), "{problems:?}");
        let alpha = Directory::load(&directory, Some("alpha")).unwrap();
        assert!(alpha.served.is_empty());
        assert!(alpha.problems[0].to_string().contains("alpha has disks"));
        fs::remove_dir_all(directory).unwrap();
    }
}
