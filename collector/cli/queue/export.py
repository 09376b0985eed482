"""`collector queue export`: whatever is in the queue, as lines that `collector push` can send."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from collector.cli.options import config_option
from collector.config import load
from collector.queue.backend import letters as letters_of
from collector.queue.by_hand import Choice, Letter

WHAT = ("waiting", "dead", "delivered")
OUTPUT = click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="File to write; standard output without it.",
)


@click.command("export", short_help="Write events as lines for `collector push`.")
@config_option
@click.option(
    "--what",
    type=click.Choice([*WHAT, "all"]),
    default="waiting",
    show_default=True,
    help="delivered: as far as queue.keep_delivered keeps it.",
)
@click.option("--app", "app_id", help="Only events of this app.")
@OUTPUT
def command(config_file: Path | None, what: str, app_id: str | None, output: str) -> None:
    """Write events as NDJSON, each with its appId; dead letters with reason and buriedAt as well.

    In constant memory, whatever there is. What a running daemon moves meanwhile may be missing, or be there twice.
    """
    with letters_of(load(config_file, with_credentials=False)) as letters:
        choice = Choice(app_id)
        sources = {"waiting": letters.waiting, "dead": letters.dead, "delivered": letters.delivered}
        write_lines((letter for name in WHAT if what in {name, "all"} for letter in sources[name](choice)), output)


def write_lines(letters: Iterable[Letter], output: str) -> None:
    """Writes each event of the letters on a line of its own."""
    with click.open_file(output, "wb") as file:
        for letter in letters:
            file.writelines(_lines(letter))


def _lines(letter: Letter) -> Iterator[bytes]:
    """The events with what belongs to them in front: if an event has such a field of its own, that one counts."""
    head: dict[str, str] = {"appId": letter.app_id}
    if letter.reason is not None:
        buried = datetime.fromtimestamp(letter.when_ms / 1000, UTC)
        head |= {"reason": letter.reason, "buriedAt": buried.isoformat(timespec="milliseconds")}
    start = msgspec.json.encode(head)[:-1] + b","
    for line in letter.lines.split(b"\n"):
        yield start + line[1:] + b"\n"
