"""What measurements of pauses have in common: kinds of failure, the longest wait, the runs of each, and
the tables that are told at the end (text, JSON, Markdown)."""

import argparse
import json
import math
import statistics
from typing import Callable, NamedTuple, Optional

from cluster import Refused, Skip, TestFailed


class Kind(NamedTuple):
    """One kind of failure: what makes it, in words, whether the office must move (None: it may), and
    the goal in seconds: for the worst run, or for so many percent of them."""

    strike: Callable
    words: str
    moves: Optional[bool]
    goal: Optional[float]
    percent: int = 100
    # What the configuration says of the time until the failure is noticed; not counted.
    detected_after: float = 0.0
    # More of the configuration.
    options: str = ""

    def is_missed(self, times):
        """Whether the goal is missed."""
        return self.goal is not None and percentile(times, self.percent) > self.goal


def percentile(times, percent):
    """The shortest time that so many percent of all do not exceed."""
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1]


def longest_wait(times, since):
    """Seconds between two acknowledgements (`times`) of which the later one was seen after `since`;
    what was already under way before counts from `since`."""
    seen = [since] + [at for at in sorted(times) if at > since]
    return max(two - one for one, two in zip(seen, seen[1:]))


def longest_wait_of_a_write(acks, since):
    """Seconds until a write was acknowledged (`acks` as Watch.acks()) that was under way at that time
    or sent later."""
    return max(ack.answered - max(ack.sent, since) for ack in acks if ack.answered > since)


def markdown(kinds, results):
    """The table for a document."""
    lines = ["| what happens | runs | median | p99 | worst | goal |", "|---|---|---|---|---|---|"]
    for kind, times in results.items():
        goal = kinds[kind].goal
        digits = 2 if goal is None or goal >= 0.1 else 3
        shown = " | ".join(f"{seconds:.{digits}f}" for seconds in (
            statistics.median(times), percentile(times, 99), max(times)))
        lines.append(f"| {kinds[kind].words} | {len(times)} | {shown} "
                     f"| {'' if goal is None else goal} |")
    return "\n".join(lines) + "\n"


def tell(kinds, results):
    """The table for a person."""
    print(f"\n{'kind of failure':<52} {'runs':>4} {'median':>8} {'p99':>8} {'worst':>8} {'goal':>7}")
    for kind, times in results.items():
        goal = kinds[kind].goal
        shown = "" if goal is None else f"{goal:>5.2f} s"
        word = "  MISSED" if kinds[kind].is_missed(times) else ""
        print(f"{kinds[kind].words:<52} {len(times):>4} {statistics.median(times):>6.3f} s "
              f"{percentile(times, 99):>6.3f} s {max(times):>6.3f} s {shown}{word}")


def run_all(document, kinds, measure):
    """The program: `measure(kind, runs, times)` adds the seconds of each run to `times`. Exit code: 0
    all goals are met, 1 one is missed or something was wrong, 77 it cannot be tried here."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("kinds", nargs="*", choices=[*kinds, []], metavar="KIND")
    given = parser.parse_args()
    results, failed = {}, False
    for kind in given.kinds or kinds:
        print(f"{kinds[kind].words}: ", end="", flush=True)
        times = []
        try:
            measure(kind, given.runs, times)
        except Skip as why:
            print(f"skipped: {why}")
            return 77
        except (TestFailed, Refused) as error:
            print(f"\nFAILED {kind}: {error}")
            failed = True
        if times:
            results[kind] = times
    tell(kinds, results)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(results, file)
    if given.markdown:
        with open(given.markdown, "w", encoding="utf-8") as file:
            file.write(markdown(kinds, results))
    missed = [kind for kind, times in results.items() if kinds[kind].is_missed(times)]
    return 1 if failed or missed else 0
