"""`collector check-config`: every problem at once."""

from pathlib import Path

import click

from collector.cli.options import config_option
from collector.cli.role import Role, role_option


@click.command("check-config", short_help="Check the configuration and list every problem.")
@config_option
@role_option
def command(config_file: Path | None, role: Role) -> None:
    """Check file and environment as `collector run` would read them, and list every problem.

    Exit code 78 if there is one. Nothing is started, nothing is written.
    """
    role.load(config_file)
    click.echo(f"The configuration is valid ({config_file or 'defaults'} and the environment).")
