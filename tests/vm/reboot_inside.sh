#!/bin/bash
# The machine of reboot.py: joins the cluster as alpha, and when a port of HOST opens, goes down.
#   reboot_inside.sh STATE_DIR ADDRESS VERB HOST
set -eu
here=$(dirname "$(readlink -f "$0")")
state=$1 address=$2 verb=$3 host=$4
: "${BIN:?set BIN to the directory with replicatord and replctl}"
ip address add "$address" dev eth0
ip link set eth0 up
tools/deploy/install --bin "$BIN"
mkdir -p /etc/replicator /var/lib/replicator
cp -r "$state/." /var/lib/replicator/
cp "$state/inside.toml" /etc/replicator/replicator.toml
. "$here/orderly_end.sh"
systemctl daemon-reload
systemctl start replicator
until (exec 3<> "/dev/tcp/$host/4444") 2> /dev/null; do sleep 0.2; done
echo "GOING DOWN at $(cut -d' ' -f1 /proc/uptime)"
systemctl --no-block "$verb"
sleep infinity
