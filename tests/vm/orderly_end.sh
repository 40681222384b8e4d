#!/bin/bash
# Read by the script of a test machine that goes down by itself: whether the daemon ended in order is said
# by the last program of the machine.
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
