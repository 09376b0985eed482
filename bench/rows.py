"""What was measured: samples, and the rows that several rounds of them make."""

import statistics
import subprocess
from operator import truediv

import msgspec

DEADLINE_SECONDS = 180.0


class Sample(msgspec.Struct):
    """One run of one row. Where events are delivered, `delivered_seconds` is when the sink had all.

    `events` are those that were acknowledged; `lost` are others, that were sent in datagrams and dropped by the kernel.
    `stored` says how many of them were no duplicates, where some were.
    """

    events: int
    seconds: float
    stored: int | None = None
    cpu_seconds: float | None = None
    delivered_seconds: float | None = None
    p99_ms: float | None = None
    lost: int | None = None
    rss_bytes: int | None = None


class Row(msgspec.Struct):
    """A row's medians over all rounds; ratios are to the row named by `against`, with the lowest and highest rate."""

    name: str
    events_per_s: float
    cpu_us_per_event: float | None
    against: str | None
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    cpu_ratio: float | None
    """CPU an event to that of the same row: steadier than the rate, which is the disk's and other programs' too."""
    delivered_per_s: float | None
    p99_ms: float | None
    lost_percent: float | None
    """The worst of all rounds."""
    p99_against: str | None
    p99_ratio: float | None
    """Median p99 to that of the row named by `p99_against`."""
    rss_mib: float | None
    """The most that the collector had resident, in the worst of all rounds."""
    rounds: int


def measured(command: list[str]) -> Sample:
    """What a process that measures itself prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_SECONDS)
    return msgspec.json.decode(done.stdout, type=Sample)


def summary(name: str, against: str | None, p99_against: str | None, samples: dict[str, list[Sample]]) -> Row:
    """A row of its samples; ratios are taken round by round."""
    mine = samples[name]
    rates = [sample.events / sample.seconds for sample in mine]
    limits = [sample.events / sample.seconds for sample in samples[against]] if against else []
    ratios = [rate / limit for rate, limit in zip(rates, limits, strict=True)] if against else []
    cpu = [sample.cpu_seconds / sample.events * 1e6 for sample in mine if sample.cpu_seconds is not None]
    bare_cpu = (
        [sample.cpu_seconds / sample.events * 1e6 for sample in samples[against] if sample.cpu_seconds]
        if against
        else []
    )
    delivered = [sample.events / sample.delivered_seconds for sample in mine if sample.delivered_seconds]
    p99 = [sample.p99_ms for sample in mine if sample.p99_ms is not None]
    slowest = [sample.p99_ms for sample in samples[p99_against]] if p99_against else []
    tails = [each.p99_ms / limit for each, limit in zip(mine, slowest, strict=False) if each.p99_ms and limit]
    resident = [sample.rss_bytes for sample in mine if sample.rss_bytes is not None]
    losses = [(sample.lost, sample.events) for sample in mine if sample.lost is not None]
    return Row(
        name=name,
        events_per_s=round(statistics.median(rates)),
        cpu_us_per_event=round(statistics.median(cpu), 2) if cpu else None,
        against=against,
        ratio=round(statistics.median(ratios), 3) if ratios else None,
        ratio_min=round(min(ratios), 3) if ratios else None,
        ratio_max=round(max(ratios), 3) if ratios else None,
        cpu_ratio=round(statistics.median(map(truediv, cpu, bare_cpu)), 2) if cpu and bare_cpu else None,
        delivered_per_s=round(statistics.median(delivered)) if delivered else None,
        p99_ms=round(statistics.median(p99), 2) if p99 else None,
        lost_percent=round(max(100 * lost / (lost + events) for lost, events in losses), 3) if losses else None,
        p99_against=p99_against,
        p99_ratio=round(statistics.median(tails), 2) if tails else None,
        rss_mib=round(max(resident) / 2**20) if resident else None,
        rounds=len(mine),
    )


def table(rows: list[Row]) -> str:
    """The rows for people."""
    head = f"{'row':<20}{'events/s':>12}{'delivered/s':>13}{'CPU us/event':>14}{'p99 ms':>9}{'lost':>9}{'MiB':>6}"
    lines = [f"{head}   of its limit"]
    for row in rows:
        limit = (
            f"{row.ratio:.0%} of {row.against} ({row.ratio_min:.0%} to {row.ratio_max:.0%})"
            if row.ratio
            else "(a limit)"
            if row.lost_percent is None
            else ""
        )
        if row.cpu_ratio:
            limit += f"; CPU {row.cpu_ratio:.1f} x"
        if row.p99_ratio:
            limit += f"; p99 {row.p99_ratio:.1f} x {row.p99_against}"
        lost = "" if row.lost_percent is None else f"{row.lost_percent:.2f} %"
        lines.append(
            f"{row.name:<20}{row.events_per_s:>12,.0f}{row.delivered_per_s or 0:>13,.0f}"
            f"{row.cpu_us_per_event or 0:>14.2f}{row.p99_ms or 0:>9.2f}{lost:>9}{row.rss_mib or 0:>6.0f}   {limit}"
        )
    return "\n".join(lines)
