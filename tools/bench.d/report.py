"""What was measured, for people and programs: a text table with goals, JSON, and a picture."""

import json
import statistics
from html import escape

import rows

TITLES = {
    "raw": "raw io_uring", "qemu-nbd": "qemu-nbd", "quorum": "quorum mirror",
    "single": "ours, alone", "mirrored": "ours, mirrored", "null": "ours, no disk",
    "cold": "ours, mirrored",
}


class Ratio:
    """A figure with a goal: a value of one system, mostly divided by that of another."""

    def __init__(self, what, row, key, system, against, sign, goal, unit="x"):
        self.what = what
        self.row = row
        self.key = key
        self.system = system
        self.against = against
        self.goal = f"{sign} {goal:g} {unit}".strip()
        self.unit = unit

    def measured(self, results):
        """The median over the rounds of the ratio within each round; none when it is missing."""
        found = []
        by_round = {}
        for result in results:
            if result["row"] == self.row:
                by_round.setdefault(result["round"], {})[result["system"]] = result
        for entries in by_round.values():
            ours, theirs = entries.get(self.system), entries.get(self.against)
            if ours is None or (self.against and theirs is None):
                continue
            found.append(value(ours, self.key) / (value(theirs, self.key) if theirs else 1))
        return statistics.median(found) if found else None


def value(result, key):
    """A figure of one measurement; CPU is the sum over the daemons, `gb_per_s` is derived."""
    if key == "cpu":
        return sum(result["cpu_s_per_million"])
    if key == "gb_per_s":
        return result["mb_per_s"] / 1000
    return result[key]


def _unreplicated():
    keys = {"us": "mean_us", "mb": "mb_per_s", "iops": "iops"}
    for row in rows.ROWS:
        if "single" in row.systems:
            sign = "<=" if row.shown == "us" else ">="
            figure = "latency" if row.shown == "us" else "throughput"
            yield Ratio(f"ours alone / qemu-nbd: {row.name} {figure}", row.name,
                        keys[row.shown], "single", "qemu-nbd", sign, 1)


# The goals of the project; the sign says which way they mean.
GOALS = [
    Ratio("mirrored / qemu-nbd: 4k write depth 1, latency", "write-4k-d1", "mean_us",
          "mirrored", "qemu-nbd", "<=", 1.25),
    Ratio("mirrored / quorum: 4k write depth 1, latency", "write-4k-d1", "mean_us",
          "mirrored", "quorum", "<=", 0.8),
    Ratio("mirrored / raw: 4k write depth 32, IOPS", "write-4k-d32", "iops",
          "mirrored", "raw", ">=", 0.47),
    Ratio("mirrored / qemu-nbd: 4k write depth 32, IOPS", "write-4k-d32", "iops",
          "mirrored", "qemu-nbd", ">=", 0.7),
    Ratio("mirrored / quorum: 4k write depth 32, IOPS", "write-4k-d32", "iops",
          "mirrored", "quorum", ">=", 1.3),
    Ratio("mirrored / qemu-nbd: 128k sequential write", "write-128k-seq", "mb_per_s",
          "mirrored", "qemu-nbd", ">=", 1.0),
    Ratio("mirrored / quorum: 128k sequential write", "write-128k-seq", "mb_per_s",
          "mirrored", "quorum", ">=", 1.7),
    Ratio("mirrored / qemu-nbd: 4k read depth 32, IOPS", "read-4k-d32", "iops",
          "mirrored", "qemu-nbd", ">=", 1.2),
    Ratio("mirrored / qemu-nbd: 70/30 mix, IOPS", "mix-4k-d32", "iops",
          "mirrored", "qemu-nbd", ">=", 1.2),
    Ratio("over 10x the activity log / within it", "cold", "of_within",
          "cold", None, ">=", 0.8),
    Ratio("CPU per million 4k writes depth 32, both daemons", "write-4k-d32", "cpu",
          "mirrored", None, "<=", 12, "s"),
    Ratio("mirrored / quorum: CPU per 4k write depth 32", "write-4k-d32", "cpu",
          "mirrored", "quorum", "<=", 0.33),
    Ratio("mirrored / qemu-nbd: flush after a 4k write", "flush", "mean_us",
          "mirrored", "qemu-nbd", "<=", 1.6),
    Ratio("mirrored / quorum: flush after a 4k write", "flush", "mean_us",
          "mirrored", "quorum", "<=", 0.75),
    Ratio("disk taken out: 4k write depth 32", "write-4k-d32", "iops",
          "null", None, ">=", 120000, "IOPS"),
    Ratio("disk taken out: 128k sequential write", "write-128k-seq", "gb_per_s",
          "null", None, ">=", 2.5, "GB/s"),
    Ratio("disk taken out: 4k write depth 1, latency", "write-4k-d1", "mean_us",
          "null", None, "<=", 38, "us"),
    *_unreplicated(),
    Ratio("resync / what this disk can copy", "resync", "of_disk_copy",
          "cold", None, ">=", 0.9),
    Ratio("p99 of an application during a resync / without", "resync", "p99_ratio",
          "cold", None, "<=", 1.5),
]


def number(measured):
    """A figure with as many digits as mean something."""
    if measured is None:
        return "-"
    if measured >= 1000:
        return f"{measured:,.0f}".replace(",", " ")
    return f"{measured:.1f}" if measured >= 20 else f"{measured:.2f}"


def main_figure(row, found):
    """The figure that a row is about, with its unit."""
    if row.shown == "us":
        return f"{found['mean_us']:.1f} us"
    if row.shown == "mb":
        return f"{found['mb_per_s']:.0f} MB/s"
    return f"{found['iops'] / 1000:.1f}k IOPS"


def one_line(row, system, found):
    """One measurement while it runs."""
    text = f"{row.name:15} {system.name:9} {main_figure(row, found):>14}"
    if "p99_us" in found:
        text += f"  mean {found['mean_us']:7.1f} us  p99 {found['p99_us']:7.1f} us"
    if "cpu_s_per_million" in found:
        text += f"  CPU {cpu_text(found['cpu_s_per_million'])} s/M"
    if found.get("others_share", 0) > 0.1:
        text += f"  (others used {found['others_share']:.0%} of the CPUs)"
    return text


def cpu_text(seconds):
    """CPU of each daemon."""
    return "+".join(f"{part:.1f}" for part in seconds) or "-"


def medians(row, system, results):
    """The median of every plain figure of a row on a system; none when it was not measured."""
    found = [r for r in results if r["row"] == row.name and r["system"] == system]
    if not found:
        return None
    merged = {}
    for key, first in found[0].items():
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            merged[key] = statistics.median(r[key] for r in found)
    if "cpu_s_per_million" in found[0]:
        merged["cpu_s_per_million"] = [
            statistics.median(parts) for parts in zip(*(r["cpu_s_per_million"] for r in found))
        ]
    return merged


def text_table(about, chosen, results, loads, problems):
    """Everything in words and columns."""
    lines = ["replicator bench, " + about["date"]]
    for key in ("cpu", "memory_gib", "kernel", "disk", "fio", "qemu", "replicator"):
        lines.append(f"  {key:11} {about[key]}")
    lines.append(f"  {about['rounds']} rounds of {about['seconds']} s, {about['size_mib']} MiB "
                 "each; medians; CPU in seconds per million requests, by daemon")
    busy = ", ".join(f"{state['busy']:.0%}" for state in loads)
    lines.append(f"  CPUs busy before each round: {busy}; load: "
                 + ", ".join(f"{state['load']:.1f}" for state in loads))
    foreign = [r["others_share"] for r in results if "others_share" in r]
    if foreign:
        lines.append(f"  CPU used by others while measuring: median "
                     f"{statistics.median(foreign):.0%}, most {max(foreign):.0%}"
                     + ("; the machine was BUSY, the figures are rough"
                        if statistics.median(foreign) > 0.1 else ""))
    for row in chosen:
        lines += ["", f"{row.title} [{row.name}]"]
        for system in row.systems:
            found = medians(row, system, results)
            if not found:
                lines.append(f"  {TITLES[system]:16} not measured")
                continue
            lines.append(f"  {TITLES[system]:16} " + detail(row, found))
    lines += ["", f"{'figure':58} {'goal':>16} {'measured':>10}"]
    for ratio in GOALS:
        measured = ratio.measured(results)
        if measured is not None:
            lines.append(f"{ratio.what:58} {ratio.goal:>16} {number(measured):>10}")
    if problems:
        lines += ["", "not everything could be measured:", *(f"  {p}" for p in problems)]
    return "\n".join(lines) + "\n"


def detail(row, found):
    """The figures of one line of the table."""
    if row.name == "resync":
        return (f"{found['mb_per_s']:.0f} MB/s; the disk copies {found['disk_copy_mb_per_s']:.0f} "
                f"MB/s; application p99 {found['p99_us']:.0f} us, without resync "
                f"{found['p99_alone_us']:.0f} us")
    text = f"{main_figure(row, found):>14}"
    if row.name == "cold":
        return f"{text}  {found['of_within']:.2f} of what it is within the log"
    if row.shown != "us":
        text += f"  mean {found['mean_us']:7.1f} us"
    return f"{text}  p99 {found['p99_us']:7.1f} us  CPU {cpu_text(found['cpu_s_per_million'])}"


COLOURS = {"raw": "#9aa5b1", "qemu-nbd": "#5b6b7d", "quorum": "#c9a227",
           "single": "#58b09c", "mirrored": "#1d7a63", "null": "#8fd3c3"}
BAR, GAP, LEFT, WIDTH, TOP = 15, 16, 250, 940, 96


def speed(row, ours, base):
    """How many times as fast as the base; a latency counts by its inverse."""
    if row.shown == "us":
        return base["mean_us"] / ours["mean_us"]
    key = "mb_per_s" if row.shown == "mb" else "iops"
    return ours[key] / base[key]


def panel(out, top, title, groups, scale):
    """A group of bars for each row; `scale` is the value at the right end. Gives the new top."""
    def x(amount):
        return LEFT + (WIDTH - LEFT - 70) * min(amount, scale) / scale
    out.append(f'<text x="20" y="{top}" class="h">{escape(title)}</text>')
    top += 14
    start = top
    for row, bars in groups:
        middle = top + len(bars) * BAR / 2 + 4
        out.append(f'<text x="{LEFT - 10}" y="{middle}" class="r">{escape(row.title)}</text>')
        for system, amount, label in bars:
            out.append(f'<rect x="{LEFT}" y="{top}" width="{max(1, x(amount) - LEFT):.1f}" '
                       f'height="{BAR - 2}" fill="{COLOURS[system]}"/>')
            out.append(f'<text x="{x(amount) + 5:.1f}" y="{top + BAR - 4}" class="v">'
                       f"{amount:.2f}  <tspan class=\"n\">{escape(label)}</tspan></text>")
            top += BAR
        top += GAP
    out.append(f'<line x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{start - 4}" y2="{top - GAP + 4}" '
               'stroke="#222" stroke-dasharray="4 3"/>')
    return top + 22


def picture(about, chosen, results):
    """An SVG: speed and CPU relative to qemu-nbd, both for every row."""
    speeds, costs = [], []
    for row in chosen:
        base = medians(row, "qemu-nbd", results)
        if not base:
            continue
        fast, dear = [], []
        for system in row.systems:
            found = medians(row, system, results)
            if not found:
                continue
            fast.append((system, speed(row, found, base), main_figure(row, found)))
            cpu = found["cpu_s_per_million"]
            if cpu:
                share = sum(cpu) / max(1e-9, sum(base["cpu_s_per_million"]))
                dear.append((system, share, f"{sum(cpu):.1f} s/M"))
        speeds.append((row, fast))
        costs.append((row, dear))
    out = []
    for number_of, system in enumerate(COLOURS):
        left = 20 + number_of * 150
        out.append(f'<rect x="{left}" y="58" width="13" height="13" fill="{COLOURS[system]}"/>')
        out.append(f'<text x="{left + 19}" y="69">{TITLES[system]}</text>')
    top = TOP + 10
    for title, groups in (
        ("Speed, qemu-nbd = 1 (longer is better)", speeds),
        ("CPU of all daemons per request, qemu-nbd = 1 (shorter is better)", costs),
    ):
        if any(bars for _, bars in groups):
            widest = max(amount for _, bars in groups for _, amount, _ in bars)
            top = panel(out, top, title, groups, widest * 1.12)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}">',
        "<style>text{font:12px sans-serif;fill:#222}.t{font:bold 17px sans-serif}"
        ".h{font:bold 13px sans-serif}.r{text-anchor:end;font-size:11px}.v{font-size:11px}"
        ".n{fill:#777}.s{fill:#555;font-size:11px}</style>",
        f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>',
        '<text x="20" y="26" class="t">Replicator beside its peers</text>',
        f'<text x="20" y="44" class="s">{escape(about["cpu"])}, kernel '
        f'{escape(about["kernel"])}, both replicas on one disk; medians of {about["rounds"]} '
        f'rounds, {escape(about["date"])}</text>',
    ]
    return "\n".join([*head, *out, "</svg>"]) + "\n"


def write(out, about, chosen, started, results, loads, problems):
    """Prints the table and writes the three files."""
    text = text_table(about, chosen, results, loads, problems)
    goals = [{"what": g.what, "row": g.row, "goal": g.goal, "measured": g.measured(results)}
             for g in GOALS]
    whole = {"about": about, "systems": sorted(started), "loads": loads, "goals": goals,
             "results": results, "problems": problems}
    (out / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "bench.txt").write_text(text)
    (out / "bench.svg").write_text(picture(about, chosen, results))
    print("\n" + text)
    print(f"written: {out}/bench.txt, {out}/bench.json, {out}/bench.svg")
