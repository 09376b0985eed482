"""`collector status`: one screen that says how the collector is."""

import sys
from pathlib import Path

import click
import msgspec

from collector.cli import EXIT_FAILED, EXIT_NOT_RUNNING
from collector.cli.options import place_options, plain
from collector.cli.reach import Busy, Place, Unreachable, ask, place, reason
from collector.cli.screen import screen, terminal_columns
from collector.clock import Clock
from collector.config import Config, load
from collector.errors import UNPARSABLE, CollectorError, Unusable
from collector.observe.status import (
    SHOWN_APPS,
    AppStatus,
    QueueStatus,
    Severity,
    Status,
    UpstreamStatus,
    problems,
    without_people,
)
from collector.queue.backend import at_rest
from collector.version import __version__


@click.command("status")
@place_options
@click.option(
    "--json", "as_json", is_flag=True, help="The document that GET /status.json answers, or why there is none."
)
def command(config_file: Path | None, at: Place | None, token_file: Path | None, timeout: float, as_json: bool) -> None:
    """Show how the collector is: what comes in and goes out, what waits and why, upstream, dead letters, limits.

    Without a running collector it says so and shows what the queue's files say.

    \b
    Exit code: 0   nothing keeps events from being taken and delivered
               1   something does; it is listed first
               69  no collector answers
    """  # noqa: D301 - click keeps the lines after \b as they are
    try:
        where, status = look(config_file, at, token_file, timeout)
    except Unreachable as error:
        say_unreachable(error, as_json=as_json)
        sys.exit(EXIT_NOT_RUNNING)
    click.echo(msgspec.json.encode(status) if as_json else screen(status, str(where), terminal_columns()))
    sys.exit(exit_code(status))


def say_unreachable(error: Unreachable, *, as_json: bool) -> None:
    """A script that asked for JSON gets JSON, a person a line on standard error."""
    if as_json:
        click.echo(unreachable_json(error))
    else:
        click.echo(f"collector: {error}", err=True)


def unreachable_json(error: Unreachable | Busy) -> str:
    """What stands in place of the document where neither a collector nor a queue could be asked."""
    return msgspec.json.encode({"isRunning": isinstance(error, Busy), "said": plain(str(error))}).decode()


def exit_code(status: Status) -> int:
    """What a script is told."""
    if not status.is_running:
        return EXIT_NOT_RUNNING
    return EXIT_FAILED if any(problem.severity is Severity.ERROR for problem in status.problems) else 0


def look(config_file: Path | None, at: Place | None, token_file: Path | None, timeout: float) -> tuple[Place, Status]:
    """Where was asked, and the status: the collector's own, or from the files of the configuration's queue.

    With `at` no files are read. Raises Unreachable where there is neither, and Busy.
    """

    def config() -> Config:
        return load(config_file, with_credentials=False)

    where = place(at, token_file, config)
    try:
        return where, _ask(where, timeout)
    except Unreachable as error:
        if at is not None:
            raise
        try:
            return where, _status_of_files(config(), Clock())
        except CollectorError as problem:
            raise Unreachable(f"{error}, and {problem}") from problem


def _ask(where: Place, timeout_seconds: float) -> Status:
    status, body = ask(where, "/status.json", timeout_seconds=timeout_seconds)
    if status == 401:
        raise Unusable(f"{where} wants to see a token; --token-file says which")
    if status == 503:
        raise Busy(f"{where}: {reason(body) or 'it answered 503'}")
    if status != 200:
        raise Unusable(f"{where} answered {status}; is it a collector of this version?")
    try:
        return msgspec.json.decode(body, type=Status)
    except UNPARSABLE as error:
        raise Unusable(f"{where} answered what this version does not understand: {error}") from None


def _status_of_files(config: Config, clock: Clock) -> Status:
    place, stats, dead_letters = at_rest(config)
    apps = [AppStatus.of(app, "unknown") for app in stats.apps]
    apps.sort(key=lambda app: (-app.waiting_events, app.app_id))
    status = Status(
        version=__version__,
        is_running=False,
        now_ms=clock.now_ms(),
        queue=QueueStatus.of(stats, place),
        upstream=UpstreamStatus(config.delivers_to, "unknown"),
        apps=apps[:SHOWN_APPS],
        apps_left_out=max(0, len(apps) - SHOWN_APPS),
        dead_letters=without_people(dead_letters),
    )
    status.problems.extend(problems(status))
    return status
