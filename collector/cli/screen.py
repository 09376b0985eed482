"""The status document as one screen of text. What strangers wrote is shown without what a terminal would obey."""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import click

from collector.cli.options import plain
from collector.observe.status import AppStatus, Severity, Status

WIDTH = 78
BARS_FROM, VALUES_FROM, REASONS_FROM = 36, 12, 11
"""Columns where these begin."""
APP_FIGURES = 46
"""Columns of an app's line beside its name."""
APPS = 10
LINE_SECONDS = 5
BARS = " ▁▂▃▄▅▆▇█"

COLOURS = {"ok": "green", "waiting": "green", "failing": "red", "held": "red"}


def screen(status: Status, place: str, columns: int | None = None) -> str:
    """All of it, with colours, which `click.echo` drops where there is no terminal.

    On a terminal of so many `columns` bars are shorter, and long lines go on below where they began.
    """
    width = min(WIDTH, columns or WIDTH)
    lines = [
        *_head(status, place, columns),
        "",
        *_figures(status, columns, bars=max(0, width - BARS_FROM)),
        "",
        *_apps(status, columns, max(8, width - APP_FIGURES)),
        *_dead_letters(status, columns),
    ]
    return "\n".join(lines)


def terminal_columns() -> int | None:
    """How wide the terminal is that standard output goes to; None where it goes elsewhere."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed
    return shutil.get_terminal_size().columns if is_terminal else None


def _head(status: Status, place: str, columns: int | None) -> Iterator[str]:
    errors = any(problem.severity is Severity.ERROR for problem in status.problems)
    colour = "red" if errors else "yellow" if status.problems else "green"
    up = f"up {duration(status.uptime_seconds)}" if status.is_running else "no answer"
    yield f"{click.style('●', fg=colour)} {click.style('collector', bold=True)} {status.version}  {up}  {plain(place)}"
    for problem in status.problems:
        fg = "red" if problem.severity is Severity.ERROR else "yellow"
        severity = click.style(f"{problem.severity.value:<7}", fg=fg)
        yield f"  {severity}  {_hanging(plain(problem.text), REASONS_FROM, columns)}"
    if not status.problems:
        yield "  Nothing keeps events from being taken and delivered."


def _figures(status: Status, columns: int | None, *, bars: int) -> Iterator[str]:
    def figure(name: str, value: str) -> str:
        return f"  {name:<10}{_hanging(value, VALUES_FROM, columns)}"

    def curve(name: str, value: str, values: Sequence[float], top: float) -> str:
        return f"  {name:<10}{value:<24}{_bars(values, top, bars)}".rstrip()

    queue, rates, upstream = status.queue, status.rates, status.upstream
    if status.is_running:
        top = max([*rates.accepted, *rates.delivered], default=0.0)
        yield curve("in", f"{rates.accepted_now:,.1f} events/s", rates.accepted, top)
        yield curve("out", f"{rates.delivered_now:,.1f} events/s", rates.delivered, top)
    yield curve("waiting", events(queue.waiting_events), rates.waiting, max(rates.waiting, default=0))
    if queue.waiting_events:
        yield figure("", f"{size(queue.waiting_bytes)}, the oldest for {_age(queue.oldest_age_seconds)}")
    again = "" if upstream.again_in_seconds is None else f", again in {duration(upstream.again_in_seconds)}"
    since = "" if upstream.since_seconds is None else f" for {duration(upstream.since_seconds)}"
    state = click.style(upstream.state, fg=COLOURS.get(upstream.state))
    yield figure("upstream", f"{state}{since}{again}  {plain(upstream.url)}")
    yield figure("files", f"{size(queue.file_bytes)} + log {size(queue.wal_bytes)}  {plain(queue.path)}")
    for limit in status.limits:
        if limit.used / limit.maximum >= 0.01:
            write = size if limit.unit == "bytes" else "{:,}".format
            yield figure("limit", f"{limit.key}: {write(limit.used)} of {write(limit.maximum)}")
    if status.refusals:
        said = ", ".join(f"{refusal.source} {refusal.reason} {refusal.count:,}" for refusal in status.refusals[:5])
        yield figure("refused", plain(said))


def _apps(status: Status, columns: int | None, room: int) -> Iterator[str]:
    if not status.apps:
        return
    width = min(room, max(len("app"), *(len(plain(app.app_id)) for app in status.apps[:APPS])))
    yield click.style(f"  {'app':<{width}}  {'state':<8}{'waiting':>12}{'oldest':>14}{'dead':>8}", dim=True)
    for app in status.apps[:APPS]:
        yield _app(app, width)
        if app.state == "held" and app.reason is not None:
            yield f"    {_hanging(plain(app.reason), 4, columns)}"
    more = len(status.apps) - APPS + status.apps_left_out
    if more > 0:
        yield f"  and {more:,} more"


def _app(app: AppStatus, width: int) -> str:
    state = click.style(f"{app.state:<8}", fg=COLOURS.get(app.state))
    name = plain(app.app_id)
    name = name if len(name) <= width else name[: width - 1] + "…"
    return f"  {name:<{width}}  {state}{app.waiting_events:>12,}{_age(app.oldest_age_seconds):>14}{app.dead_events:>8,}"


def _dead_letters(status: Status, columns: int | None) -> Iterator[str]:
    if status.dead_letters.reasons:
        yield ""
        yield click.style("  dead letters, by reason", dim=True)
        for reason in status.dead_letters.reasons[:5]:
            yield f"  {reason.events:>8,}  {_hanging(plain(reason.reason), VALUES_FROM, columns)}"


def _hanging(text: str, begins: int, columns: int | None) -> str:
    """The text from a column on, as many lines as it takes."""
    if columns is None:
        return text
    return f"\n{' ' * begins}".join(textwrap.wrap(text, max(20, columns - begins), break_on_hyphens=False))


def _bars(values: Sequence[float], top: float, room: int) -> str:
    """Means over some seconds each, the latest last."""
    latest = values[max(0, len(values) - room * LINE_SECONDS) :]
    first = len(latest) % LINE_SECONDS
    means = [
        sum(latest[start : start + LINE_SECONDS]) / LINE_SECONDS for start in range(first, len(latest), LINE_SECONDS)
    ]
    return "".join(BARS[min(8, -int(-8 * mean // top))] if top else " " for mean in means)


def duration(seconds: float) -> str:
    """For people, in the largest two units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def events(count: int) -> str:
    """So many."""
    return f"{count:,} event{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)
