"""What measurements of pauses have in common: kinds of failure, the longest wait, the runs of each, and
the tables that are told at the end (text, JSON, Markdown)."""

import argparse
import json
import math
import statistics
from typing import Callable, NamedTuple, Optional

from cluster import Refused, Skip, TestFailed


class Pause(float):
    """How long a client of a service waited, in seconds; and of it: how long the failure went unnoticed,
    and how long the service itself took to stop and to start."""

    def __new__(cls, waited, noticed, own):
        pause = super().__new__(cls, waited)
        pause.noticed, pause.own = noticed, own
        return pause

    @property
    def without_own(self):
        """What is ours of it."""
        return self - self.own


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
    # What of a run the goal is about.
    judged: Callable = float

    def is_missed(self, times):
        """Whether the goal is missed."""
        judged = [self.judged(run) for run in times]
        return self.goal is not None and percentile(judged, self.percent) > self.goal


# What stands beside the pause where it has parts.
PARTS = {"noticed": lambda pause: pause.noticed, "own stop, start": lambda pause: pause.own,
         "without": lambda pause: pause.without_own}


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
    """The table for a document; of the parts of a pause median and worst."""
    has_parts = any(isinstance(run, Pause) for times in results.values() for run in times)
    heads = ["what happens", "runs", "median", "p99", "worst", *(PARTS if has_parts else ()), "goal"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind, times in results.items():
        goal = kinds[kind].goal
        digits = 2 if goal is None or goal >= 0.1 else 3
        shown = " | ".join(f"{seconds:.{digits}f}" for seconds in (
            statistics.median(times), percentile(times, 99), max(times)))
        parts = "".join(f" | {median:.2f}, {worst:.2f}" for _, median, worst in parts_of(times))
        lines.append(f"| {kinds[kind].words} | {len(times)} | {shown}{parts} "
                     f"| {'' if goal is None else goal} |")
    return "\n".join(lines) + "\n"


def parts_of(times):
    """(name, median, worst) of each part of these pauses; nothing where they have none."""
    for name, part in PARTS.items() if all(isinstance(run, Pause) for run in times) else ():
        found = [part(run) for run in times]
        yield name, statistics.median(found), max(found)


def tell(kinds, results):
    """The table for a person."""
    print(f"\n{'kind of failure':<52} {'runs':>4} {'median':>8} {'p99':>8} {'worst':>8} {'goal':>7}")
    for kind, times in results.items():
        goal = kinds[kind].goal
        shown = "" if goal is None else f"{goal:>5.2f} s"
        word = "  MISSED" if kinds[kind].is_missed(times) else ""
        print(f"{kinds[kind].words:<52} {len(times):>4} {statistics.median(times):>6.3f} s "
              f"{percentile(times, 99):>6.3f} s {max(times):>6.3f} s {shown}{word}")
        parts = [f"{name} {median:.3f} (worst {worst:.3f}) s"
                 for name, median, worst in parts_of(times)]
        if parts:
            print(f"{'':<10}of it: {'; '.join(parts)}")


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
            # Of a pause its parts too.
            json.dump({kind: [{"waited": run, **vars(run)} if isinstance(run, Pause) else run
                              for run in times] for kind, times in results.items()}, file)
    if given.markdown:
        with open(given.markdown, "w", encoding="utf-8") as file:
            file.write(markdown(kinds, results))
    missed = [kind for kind, times in results.items() if kinds[kind].is_missed(times)]
    return 1 if failed or missed else 0
