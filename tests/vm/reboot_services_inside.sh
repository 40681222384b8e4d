#!/bin/bash
# The machine of reboot_services.py: joins the cluster as alpha, with its state on the second disk, and
# obeys. The daemon's log is there, too: with its own time stamps, and read when the machine is off.
#   reboot_services_inside.sh STATE_DIR ADDRESS AGENT_PORT
set -eu
here=$(dirname "$(readlink -f "$0")")
state=$1 address=$2 agent_port=$3
: "${BIN:?set BIN to the directory with replicatord and replctl}"
ip address add "$address" dev eth0
ip link set eth0 up
"$here/../../tools/deploy/install" --bin "$BIN"
mkdir -p /etc/replicator /var/lib/replicator
mount /dev/vdb /var/lib/replicator
cp "$state/inside.toml" /etc/replicator/replicator.toml
. "$here/orderly_end.sh"
cat > /run/systemd/system/replicator.service.d/log.conf <<'UNIT'
[Service]
StandardOutput=append:/var/lib/replicator/log
StandardError=append:/var/lib/replicator/log
UNIT
systemctl daemon-reload
systemctl --no-block start replicator
exec python3 "$here/agent.py" "$agent_port"
