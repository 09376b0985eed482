"""`collector replay`: delivered events, once more."""

from pathlib import Path

import click
import msgspec

from collector.cli.options import TextType, TimeType, config_option
from collector.cli.screen import events
from collector.clock import Clock
from collector.config import load
from collector.queue.backend import by_hand
from collector.queue.by_hand import Choice


@click.command("replay")
@config_option
@click.option("--since", type=TimeType(), required=True, help="Delivered at or after: ISO 8601 (UTC), or -7d.")
@click.option("--until", type=TimeType(), help="Delivered before: ISO 8601 (UTC), or -1h. Now without it.")
@click.option("--app", "app_id", type=TextType(), help="Only events of this app.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    config_file: Path | None, since: int, until: int | None, app_id: str | None, dry_run: bool, as_json: bool
) -> None:
    """Put delivered events back to wait, so that they are sent again; a running daemon does so within a second or two.

    Only what is still kept: queue.keep_delivered says how long, and is off by default. An event is known to upstream by
    its timestamp, email and eventName, so that sending it again adds nothing where it had arrived.
    """
    config = load(config_file, with_credentials=False)
    choice = Choice(app_id, since_ms=since, until_ms=Clock().now_ms() if until is None else until)
    with by_hand(config, for_writing=not dry_run) as queue:
        count = queue.count_delivered(choice) if dry_run else queue.replay(choice)
    if as_json:
        click.echo(msgspec.json.encode({"events": count, "dryRun": dry_run}))
    else:
        why = "" if count or config.queue.keep_delivered else "; queue.keep_delivered is off, so none is kept"
        click.echo(f"{events(count)} {'would wait' if dry_run else 'waiting'} again{why}")
