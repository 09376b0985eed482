"""`collector api audit-events`: once, or for ever with a cursor that knows where it stopped."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import click

from collector.cli.api.change import call, say_wait
from collector.cli.api.cursor import WINDOW, Cursor, CursorFile, Trail
from collector.cli.api.output import (
    default_format,
    end_torn_line,
    format_option,
    to_csv,
    to_ndjson,
    write_rows,
    write_to_disk,
    written_bytes,
)
from collector.cli.loop import stop_signals
from collector.cli.options import DurationType, MomentType, config_option
from collector.clock import Clock
from collector.config import load
from collector.config.kinds import Seconds
from collector.contract.models import AuditEvent
from collector.errors import Retryable
from collector.upstream.client import AUDIT_WINDOW, Client


@click.command("audit-events")
@config_option
@format_option
@click.option(
    "--since",
    type=MomentType(),
    default="-1d",
    show_default=True,
    help="ISO 8601, or so long ago as -7d. Where there is a cursor already, that counts.",
)
@click.option("--until", type=MomentType(), help="The same, itself left out. Default: now.")
@click.option("--follow", is_flag=True, help="Go on for ever, until SIGTERM or SIGINT.")
@click.option(
    "--interval",
    type=DurationType("100ms", "1d"),
    default="60s",
    show_default=True,
    help="With --follow: how long to wait before asking again.",
)
@click.option(
    "--cursor",
    "cursor_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that says where to go on; made by the first run. ndjson or csv only; CSV's header comes once a file.",
)
def command(
    config_file: Path | None,
    output_format: str | None,
    since: datetime,
    until: datetime | None,
    follow: bool,
    interval: Seconds,
    cursor_path: Path | None,
) -> None:
    """What people did on the platform (getAuditEvents).

    With --cursor the next run goes on where this one stopped: nothing is missed, nothing is written twice; but for a
    run that ends within a write, by a kill or a full disk, whose last 500 events at most may come again. Events may
    appear upstream up to five minutes late.
    """
    if follow and until:
        raise click.UsageError("--follow goes on for ever: leave out --until.")
    if until and since >= until and cursor_path is None:
        raise click.UsageError("--since is not before --until.")
    streams = follow or cursor_path is not None
    if streams and output_format not in {None, "ndjson", "csv"}:
        raise click.UsageError(
            f"--format {output_format} needs all events at once: with --follow or --cursor take ndjson or csv."
        )
    upstream = load(config_file).upstream
    output_format = output_format or ("ndjson" if streams else default_format("ndjson"))
    if output_format not in {"ndjson", "csv"}:
        write_rows(call(upstream, lambda client: _all(client, since, until)), AuditEvent, output_format)
        return
    file = CursorFile(cursor_path) if cursor_path else None
    with file.held() if file else nullcontext():
        known = file.load() if file else None
        written = written_bytes() if file else None
        goes_on = known is not None if written is None else written > 0
        if goes_on:
            end_torn_line(is_csv=output_format == "csv")
        write = _writer(output_format, with_header=not goes_on)
        save = file.save if file else _forget
        window = WINDOW if file else AUDIT_WINDOW  # as much as one request may ask for
        clock, every = Clock(), interval if follow else None

        async def work(client: Client) -> None:
            cursor = known or Cursor(since)
            await _run(Trail(client, cursor, clock=clock, write=write, save=save, window=window), until, every, clock)

        call(upstream, work)


async def _all(client: Client, since: datetime, until: datetime | None) -> Sequence[AuditEvent]:
    return [event async for event in client.audit_events(since, until)]


async def _run(trail: Trail, until: datetime | None, interval_seconds: float | None, clock: Clock) -> None:
    """Returns after one pass, or with an interval when a signal asks to stop. Raises click.Abort amid the one pass.

    Both end once what is being written is out, which it never may be: a reader that stands still is left at a second
    signal.
    """
    if interval_seconds is None:
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell has it for what runs beside it
        # Nobody sends a second SIGTERM to what shall end by itself.
        stop = asyncio.Event() if is_ignored else stop_signals(signal.SIGINT)
        work = asyncio.create_task(trail.follow(until))
    else:
        stop = stop_signals()
        work = asyncio.create_task(for_ever(trail.follow, interval_seconds, clock))
    stop_asked = asyncio.create_task(stop.wait())
    await asyncio.wait([work, stop_asked], return_when=asyncio.FIRST_COMPLETED)
    stop_asked.cancel()
    if work.done():
        await work
        return
    work.cancel()
    await asyncio.wait([work])
    if interval_seconds is None:
        raise click.Abort


async def for_ever(follow: Callable[[], Awaitable[None]], interval_seconds: float, clock: Clock) -> None:
    """Follows again and again; what passes by itself is said and, where upstream asks for that, waited for longer.

    All else is raised.
    """
    while True:
        try:
            await follow()
        except Retryable as error:
            wait_seconds = max(interval_seconds, error.retry_after_seconds or 0.0)
            say_wait(error, wait_seconds)
            await clock.sleep(wait_seconds)
        else:
            await clock.sleep(interval_seconds)


def _writer(output_format: str, *, with_header: bool) -> Callable[[Sequence[AuditEvent]], None]:
    if output_format == "ndjson":
        return lambda events: write_to_disk(to_ndjson(events))
    header_is_due = with_header

    def write(events: Sequence[AuditEvent]) -> None:
        nonlocal header_is_due
        write_to_disk(to_csv(events, AuditEvent, with_header=header_is_due))
        header_is_due = False

    return write


def _forget(_cursor: Cursor) -> None:
    """Without a file nobody goes on from here."""
