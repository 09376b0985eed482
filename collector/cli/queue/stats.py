"""`collector queue stats`: how much there is of what."""

from pathlib import Path

import click
import msgspec

from collector.cli.options import config_option, plain
from collector.config import load
from collector.queue.backend import at_rest
from collector.queue.base import QueueStats


@click.command("stats", short_help="What waits, what is dead, how large the files are.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(config_file: Path | None, as_json: bool) -> None:
    """What waits, what is dead, and how large the files are, over all apps and by app."""
    _, queue, _ = at_rest(load(config_file, with_credentials=False))
    click.echo(msgspec.json.encode(queue).decode() if as_json else _table(queue))


def _table(queue: QueueStats) -> str:
    lines = [
        f"waiting         {queue.waiting_events:>12,} events  {queue.waiting_bytes:>14,} bytes",
        f"oldest          {_age(queue.oldest_age_ms):>12}",
        f"dead letters    {queue.dead_events:>12,} events  {queue.dead_bytes:>14,} bytes",
        f"kept, delivered {queue.kept_events:>12,} events",
        f"keys remembered {queue.remembered_keys:>12,}",
        f"file            {queue.file_bytes:>12,} bytes   + log {queue.wal_bytes:,} bytes",
    ]
    if queue.apps:
        names = [plain(app.app_id) for app in queue.apps]
        width = max(len("app"), *map(len, names))
        lines += ["", f"{'app':<{width}}  {'waiting':>12}  {'oldest':>12}  {'dead':>8}"]
        lines += [
            f"{name:<{width}}  {app.waiting_events:>12,}  {_age(app.oldest_age_ms):>12}  {app.dead_events:>8,}"
            for name, app in zip(names, queue.apps, strict=True)
        ]
    return "\n".join(lines)


def _age(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:,.1f} s"
