"""`collector queue …`: the queue by hand. All of it works while the daemon runs, but for `bury` and `recover`."""

import click

from collector.cli.queue import bury, dead, export, files, stats


@click.group("queue")
def command() -> None:
    """Look into the queue and mend it; but for `bury` and `recover`, also while the daemon runs."""


for member in (stats.command, dead.command, bury.command, export.command, files.check, files.recover, files.backup):
    command.add_command(member)
