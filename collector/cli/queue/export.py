"""`collector queue export`: whatever is in the queue, as lines that `collector push` can send."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec

from collector.cli.options import TextType, config_option
from collector.config import load
from collector.queue.backend import by_hand
from collector.queue.by_hand import Choice, Entry

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
@click.option("--app", "app_id", type=TextType(), help="Only events of this app.")
@OUTPUT
def command(config_file: Path | None, what: str, app_id: str | None, output: str) -> None:
    """Write events as NDJSON, each with its appId; dead letters with reason and buriedAt as well.

    In constant memory, whatever there is. What a running daemon moves meanwhile may be missing, or be there twice.
    """
    with by_hand(load(config_file, with_credentials=False)) as queue:
        choice = Choice(app_id)
        sources = {"waiting": queue.waiting, "dead": queue.dead, "delivered": queue.delivered}
        write_lines((entry for name in WHAT if what in {name, "all"} for entry in sources[name](choice)), output)


def write_lines(entries: Iterable[Entry], output: str) -> None:
    """Writes each event on a line of its own."""
    with click.open_file(output, "wb") as file:
        for entry in entries:
            file.writelines(_lines(entry))


def _lines(entry: Entry) -> Iterator[bytes]:
    """The events with what belongs to them in front: if an event has such a field of its own, that one counts."""
    head = {"appId": entry.app_id}
    if entry.reason is not None:
        head |= {"reason": entry.reason, "buriedAt": entry.when}
    start = msgspec.json.encode(head)[:-1] + b","
    for line in entry.lines.split(b"\n"):
        yield start + line[1:] + b"\n"
