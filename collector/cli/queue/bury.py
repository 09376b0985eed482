"""`collector queue bury`: what waits of an app that upstream will never take becomes dead letters."""

import sys
from pathlib import Path

import click
import msgspec

from collector.cli.loop import run
from collector.cli.options import TextType, config_option, plain
from collector.clock import Clock
from collector.config import Config, load
from collector.observe.metrics import Metrics
from collector.queue.backend import at_rest, backend
from collector.queue.base import Burial


@click.command("bury", short_help="Make dead letters of all that waits of an app.")
@config_option
@click.option("--app", "app_id", type=TextType(), required=True, help="The app.")
@click.option("--reason", type=TextType(), required=True, help="Why, for whoever reads the dead letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; needs --yes.")
def command(config_file: Path | None, app_id: str, reason: str, yes: bool, as_json: bool) -> None:
    """Make all events of an app that wait dead letters, where upstream will never take them.

    They no longer take room from other apps, and can be exported, purged, or put back: see collector queue dead. The
    daemon that delivers must not run; with JetStream it may, and what it is just delivering is left to it.
    """
    if as_json and not yes:
        raise click.UsageError("--json needs --yes: there is nobody to ask")
    config = load(config_file, with_credentials=False)
    _, stats, _ = at_rest(config)
    name = plain(app_id)
    waiting = next((app.waiting_events for app in stats.apps if app.app_id == app_id), 0)
    if waiting and not yes and not click.confirm(f"Make {waiting:,} events of {name} dead letters?", err=True):
        click.echo("nothing was buried")
        sys.exit(1)
    buried = run(_bury(config, app_id, reason)) if waiting else 0
    if as_json:
        click.echo(msgspec.json.encode({"buried": buried}))
    else:
        click.echo(f"{buried:,} events of {name} are dead letters" if waiting else f"no event of {name} waits")


async def _bury(config: Config, app_id: str, reason: str) -> int:
    """How many were buried. Raises QueueInUse, DeadLettersFull, and what opening the queue raises."""
    queue = backend(config, clock=Clock(), metrics=Metrics())
    queue.take_flusher_role()
    buried = 0
    try:
        await queue.open()
        try:
            while lease := await queue.lease(app_id, config.flush.batch_events):
                await queue.settle(lease, buried=[Burial(position, reason) for position in range(lease.events)])
                buried += lease.events
        finally:
            await queue.close()
    finally:
        queue.release_flusher_role()
    return buried
