#!/bin/bash
# A data node of nfs.py: set up as the example says, with its state on the second disk.
#   nfs_inside.sh STATE_DIR ADDRESS AGENT_PORT
set -eu
here=$(dirname "$(readlink -f "$0")")
state=$1 address=$2 agent_port=$3 examples=tools/deploy/examples
: "${BIN:?set BIN to the directory with replicatord and replctl}"
ip address add "$address" dev eth0
ip link set eth0 up
# As on every Debian: their daemons look for pipes where this one has them mounted.
rm /run/systemd/system-generators/rpc-pipefs-generator
systemctl -q mask rpcbind.socket rpcbind.service rpc-statd.service
mkdir -p /etc/replicator /etc/nfs.conf.d /var/lib/replicator /srv/nfs
install $examples/nfs-server /etc/replicator/nfs-server
cp $examples/nfs-server.conf /etc/nfs.conf.d/
mount /dev/vdb /var/lib/replicator
cp "$state/inside.toml" /etc/replicator/replicator.toml
tools/deploy/install --bin "$BIN"
systemctl --no-block start replicator
exec python3 "$here/agent.py" "$agent_port"
