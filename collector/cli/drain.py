"""`collector drain`: waits until nothing waits, for a container's preStop and before a queue is moved."""

import sys
import time
from pathlib import Path

import click
import msgspec

from collector.cli import EXIT_NOT_NOW, EXIT_NOT_RUNNING
from collector.cli.options import DurationType, place_options
from collector.cli.reach import Busy, Place, Unreachable
from collector.cli.screen import events
from collector.cli.status import look, say_unreachable

LOOK_SECONDS = 0.5


@click.command("drain")
@place_options
@click.option(
    "--deadline", type=DurationType("0s", "1d"), default="20s", show_default=True, help="How long to wait at most."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    config_file: Path | None,
    at: Place | None,
    token_file: Path | None,
    timeout: float,
    deadline: float,
    as_json: bool,
) -> None:
    """Wait until the collector has delivered everything that it has accepted. It goes on taking events meanwhile.

    \b
    Exit code: 0   nothing waits
               75  something still does; it stays in the queue
               69  no collector answers
    """  # noqa: D301 - click keeps the lines after \b as they are
    until = time.monotonic() + deadline
    while True:
        try:
            where, status = look(config_file, at, token_file, timeout)
        except Unreachable as error:
            say_unreachable(error, as_json=as_json)
            sys.exit(EXIT_NOT_RUNNING)
        except Busy:
            if time.monotonic() >= until:
                raise
            time.sleep(LOOK_SECONDS)
            continue
        waiting = status.queue.waiting_events
        if not waiting or not status.is_running or time.monotonic() >= until:
            break
        time.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
    if as_json:
        click.echo(msgspec.json.encode({"isRunning": status.is_running, "waitingEvents": waiting}))
    else:
        place = f"{where}" if status.is_running else f"no collector answers at {where}; by the queue's files"
        click.echo(f"{place}: {events(waiting)} waiting" if waiting else f"{place}: everything is delivered")
    if not status.is_running:
        sys.exit(EXIT_NOT_RUNNING)
    sys.exit(EXIT_NOT_NOW if waiting else 0)
