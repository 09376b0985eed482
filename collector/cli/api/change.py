"""What the commands share that change something upstream: options, the question before, progress, the result."""

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from collector.cli.api.formats import InputFormat
from collector.cli.loop import run
from collector.cli.options import TextType
from collector.config.model import Upstream
from collector.contract.operations import PUBLISH_USAGE_EVENTS, Operation
from collector.errors import ConfigInvalid, Retryable
from collector.upstream.calls import outcome_unknown
from collector.upstream.client import Client
from collector.upstream.wire import api_request

SAID_WAIT_SECONDS = 5.0
"""Who waits for less need not be told why."""

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")
Result = TypeVar("Result")

app_argument = click.argument("app_id", metavar="APP", type=TextType())
file_argument = click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True), metavar="FILE"
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be sent, send nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask before something is removed.")


def input_options(command: Command) -> Command:
    """Options of the commands that read records."""
    command = click.option(
        "--ignore-unknown",
        is_flag=True,
        help="Leave out fields that the contract does not have; else they are problems.",
    )(command)
    return click.option(
        "--input-format",
        type=click.Choice(InputFormat, case_sensitive=False),
        help="Default: told by the file's name, else by its first character.",
    )(command)


class Change(msgspec.Struct, rename="camel", frozen=True):
    """What was sent; with `dry_run` what would have been."""

    operation: str
    request: str
    """Method and URL."""
    records: int
    requests: int
    dry_run: bool


def change(
    operation: Operation[Any],
    upstream: Upstream,
    names: Mapping[str, str],
    *,
    records: int,
    dry_run: bool,
    requests: int = 1,
) -> Change:
    """The change that this operation makes. Raises AppUnusable where the app's ID cannot stand in a URL."""
    path = upstream.usage_events_path if operation is PUBLISH_USAGE_EVENTS else ""
    request = api_request(operation, upstream.base_url, names, token="", path=path)
    return Change(operation.id, f"{request.method} {request.url}", records, requests, dry_run)


def call(
    upstream: Upstream, work: Callable[[Client], Awaitable[Result]], *, not_replayable: Operation[Any] | None = None
) -> Result:
    """What `work` makes of a client that is ready to call; a long wait is said.

    Raises ConfigInvalid where there are no credentials, and OutcomeUnknown where Ctrl-C comes amid an operation that is
    `not_replayable`.
    """
    if upstream.client_id is None or upstream.client_secret is None:  # which an edge that forwards can do without
        raise ConfigInvalid("upstream.client_id, upstream.client_secret: missing; the API's operations need them")

    async def with_client() -> Result:
        async with Client(upstream, on_wait=_say_long_wait) as client:
            return await work(client)

    try:
        return run(with_client())
    except KeyboardInterrupt as error:
        if not_replayable is None:
            raise
        raise outcome_unknown(not_replayable, f"{not_replayable.id}: interrupted") from error


def say_wait(error: Retryable, seconds: float) -> None:
    """Who waits is told on standard error why, and how long."""
    click.echo(f"{error}; next try in {round(seconds, 1):g} s", err=True)


def _say_long_wait(error: Retryable, seconds: float) -> None:
    if seconds >= SAID_WAIT_SECONDS:
        say_wait(error, seconds)


def confirm(question: str, *, yes: bool) -> None:
    """Returns if the answer is yes. Raises click.Abort where it is no, UsageError where there is nobody to ask."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{question} Standard input is no terminal to answer at; --yes answers.")
    click.confirm(question, abort=True, err=True)


@contextmanager
def progress(items: Sequence[Item], about: str) -> Iterator[Iterable[Item]]:
    """The same items; who takes them moves a bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(about, total=len(items))

        # Not bars.track: left off in the middle, it waits at the end of Python 3.13 for a thread that is no more.
        def moving() -> Iterator[Item]:
            for item in items:
                yield item
                bars.advance(bar)

        yield moving()
