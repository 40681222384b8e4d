#!/bin/bash
# A service whose life is seen from outside: ten times a second its name goes to HOST, by UDP.
#   beat.sh NODE HOST PORT
pause=$(mktemp -u /tmp/beat.XXXXXX)
mkfifo "$pause"
exec 3> "/dev/udp/$2/$3" 4<> "$pause"
rm -f "$pause"
while :; do
  echo "$1" >&3
  read -r -t 0.1 -u 4
done
