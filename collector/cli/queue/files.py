"""`collector queue check`, `recover` and `backup`: the queue's file, looked at, mended and copied by hand."""

import sys
from pathlib import Path

import click
import msgspec

from collector.cli.options import config_option
from collector.config import Config, load
from collector.queue.backend import JETSTREAM, need_file
from collector.queue.backend import problems as problems_of
from collector.queue.sqlite.backup import back_up
from collector.queue.sqlite.rescue.recover import recover as recover_file


@click.command("check")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(config_file: Path | None, as_json: bool) -> None:
    """Read the whole file and say what is wrong with it. Exit code 1 if anything is.

    Also while the daemon runs; the log is only looked at while nobody writes to it. With JetStream: whether the streams
    are as they must be, and all replicas up to date.
    """
    config = load(config_file, with_credentials=False)
    problems = problems_of(config)
    if as_json:
        click.echo(msgspec.json.encode({"problems": problems}))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(damaged(config) if problems else "the queue is sound")
    sys.exit(1 if problems else 0)


@click.command("recover", short_help="Set a damaged file aside and salvage what can be read.")
@config_option
@click.option("--always", is_flag=True, help="Also where the check finds nothing wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def recover(config_file: Path | None, always: bool, as_json: bool) -> None:
    """Set a damaged file aside and salvage all that can be read; what each start does by itself.

    The daemon must not run. Nothing is deleted: the damaged file stays beside the new one.
    """
    config = load(config_file, with_credentials=False)
    need_file(config, "collector queue recover")
    salvaged = recover_file(config.queue.path, always=always)
    if as_json:
        click.echo(msgspec.json.encode(salvaged))
    elif salvaged is None:
        click.echo("the queue is sound; nothing was done")
    else:
        for name, value in salvaged.as_fields().items():
            click.echo(f"{name.replace('_', ' '):<24}{value:>12,}" if isinstance(value, int) else f"{name}: {value}")


@click.command("backup", short_help="Copy the queue to DIRECTORY as it is at this instant.")
@config_option
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def backup(config_file: Path | None, directory: Path) -> None:
    """Copy the queue as it is at this instant to DIRECTORY, also while the daemon runs.

    A collector with queue.path = DIRECTORY goes on from there: what was delivered since is delivered once more, which
    upstream absorbs, and what was accepted since is not known to it.
    """
    config = load(config_file, with_credentials=False)
    need_file(config, "collector queue backup")
    size = back_up(config.queue.path, directory)
    click.echo(f"{size:,} bytes are in {directory}")


def damaged(config: Config) -> str:
    """What a person does about problems."""
    if config.queue.backend == JETSTREAM:
        return "the streams need attention; the servers' own tools mend them"
    return "the queue is damaged; collector queue recover mends it"
