#!/bin/bash
# The machine of services.py: everything is put in place, nothing is started; then it obeys.
#   services_inside.sh STATE_DIR ADDRESS HOST PORT AGENT_PORT
set -eu
here=$(dirname "$(readlink -f "$0")")
state=$1 address=$2 host=$3 port=$4 agent_port=$5
: "${BIN:?set BIN to the directory with replicatord and replctl}"
ip address add "$address" dev eth0
ip link set eth0 up
# One that nobody has to feed in time while somebody else has it.
modprobe softdog soft_margin=600
tools/deploy/install --bin "$BIN"
mkdir -p /etc/replicator /var/lib/replicator
cp -r "$state/." /var/lib/replicator/
cp "$state/inside.toml" /etc/replicator/replicator.toml
# What the watchdogs were when the service began, and the service.
cat > /usr/lib/systemd/system/demo.service <<UNIT
[Unit]
Description=A service that is heard from outside
[Service]
ExecStartPre=/bin/sh -c 'cat /sys/class/watchdog/watchdog*/state > /run/watchdogs-at-start'
ExecStart=/bin/bash $here/beat.sh alpha $host $port
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
exec python3 "$here/agent.py" "$agent_port"
