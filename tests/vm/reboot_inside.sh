#!/bin/bash
# The machine of reboot.py: joins the cluster as alpha, and when a port of HOST opens, goes down.
#   reboot_inside.sh STATE_DIR ADDRESS VERB HOST
set -eu
state=$1 address=$2 verb=$3 host=$4
: "${BIN:?set BIN to the directory with replicatord and replctl}"
ip address add "$address" dev eth0
ip link set eth0 up
tools/deploy/install --bin "$BIN"
mkdir -p /etc/replicator /var/lib/replicator
cp -r "$state/." /var/lib/replicator/
cp "$state/inside.toml" /etc/replicator/replicator.toml
# Whether the daemon ended in order is said by the last program of the machine.
mkdir -p /run/systemd/system/replicator.service.d /usr/lib/systemd/system-shutdown
cat > /run/systemd/system/replicator.service.d/test.conf <<'UNIT'
[Service]
ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_STATUS > /run/daemon-ended'
UNIT
cat > /usr/lib/systemd/system-shutdown/verdict <<'VERDICT'
#!/bin/bash
if [ "$(cat /run/daemon-ended)" = "success 0" ]; then echo finished 0 > /dev/ttyS1
else echo "the daemon ended: $(cat /run/daemon-ended)" > /dev/ttyS0; echo finished 1 > /dev/ttyS1; fi
VERDICT
chmod +x /usr/lib/systemd/system-shutdown/verdict
systemctl daemon-reload
systemctl start replicator
until (exec 3<> "/dev/tcp/$host/4444") 2> /dev/null; do sleep 0.2; done
echo "GOING DOWN at $(cut -d' ' -f1 /proc/uptime)"
systemctl --no-block "$verb"
sleep infinity
