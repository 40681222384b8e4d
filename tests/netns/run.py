#!/usr/bin/env python3
"""Real daemons on this machine: kills, returns, resyncs, roles, bad input, cut networks. Every
scenario is a function whose name says what must be true.

    run.py                  all of them
    run.py WORD...          those with one of these words in the name
    run.py --long [WORD...] also those that take minutes
    run.py --list           their names

Exit code: 0 all passed, 1 something failed, 77 something could not be tried here (no root).
"""

import sys
import time
import traceback

import bad_input
import fencing
import floating_address
import kills
import many_clusters
import networks
import recordings
import roles
import storage
import trio_explain
import trio_hosts
import trio_http
import trio_members
import trio_network
import trio_operation
import trio_postgres
import trio_services
from cluster import Refused, Skip, TestFailed

SCENARIOS = (kills.SCENARIOS + roles.SCENARIOS + storage.SCENARIOS + networks.SCENARIOS
             + bad_input.SCENARIOS + recordings.SCENARIOS + fencing.SCENARIOS + floating_address.SCENARIOS
             + trio_network.SCENARIOS + trio_hosts.SCENARIOS + trio_operation.SCENARIOS
             + trio_explain.SCENARIOS + trio_members.SCENARIOS + trio_http.SCENARIOS
             + trio_services.SCENARIOS
             + trio_postgres.SCENARIOS + many_clusters.SCENARIOS)
LONG = (trio_postgres.LONG + trio_network.LONG + trio_hosts.LONG + trio_operation.LONG
        + trio_services.LONG + fencing.LONG)


def sentence(scenario):
    """The name of a scenario in words."""
    return scenario.__name__.replace("_", " ")


def main():
    words = [word for word in sys.argv[1:] if word != "--long"]
    scenarios = SCENARIOS + (LONG if "--long" in sys.argv else [])
    if words == ["--list"]:
        for scenario in SCENARIOS + LONG:
            print(sentence(scenario))
        return 0
    chosen = [it for it in scenarios if not words or any(word in sentence(it) for word in words)]
    began, failed, skipped = time.monotonic(), [], []
    for scenario in chosen:
        started = time.monotonic()
        print(f"...     {sentence(scenario)}", flush=True)
        try:
            scenario()
            word = "ok     "
        except Skip as why:
            word = "skipped"
            skipped.append(scenario)
            print(f"    {why}")
        except (TestFailed, Refused) as error:
            word = "FAILED "
            failed.append(scenario)
            line = traceback.extract_tb(error.__traceback__)[1]
            print(f"    line {line.lineno}: {line.line}\n    {error}")
        except Exception:
            word = "FAILED "
            failed.append(scenario)
            traceback.print_exc(file=sys.stdout)
        print(f"{word} {sentence(scenario)} ({time.monotonic() - started:.1f} s)", flush=True)
    passed = len(chosen) - len(failed) - len(skipped)
    print(f"\n{passed} passed, {len(failed)} failed, {len(skipped)} skipped, "
          f"{time.monotonic() - began:.0f} s")
    for scenario in failed:
        print(f"FAILED: {sentence(scenario)}")
    return 1 if failed or not chosen else 77 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
