"""`collector check-config`: every problem at once."""

from pathlib import Path

import click

from collector.cli.options import config_option
from collector.cli.role import Role, role_option
from collector.config import load


@click.command("check-config")
@config_option
@role_option
@click.option(
    "--without-credentials",
    is_flag=True,
    help="Leave out credentials and who may send, for who may not see the files that say it.",
)
def command(config_file: Path | None, role: Role, without_credentials: bool) -> None:
    """Check file and environment as `collector run` would read them, and list every problem.

    Exit code 78 if there is one. Nothing is started, nothing is written.
    """
    if without_credentials:
        load(config_file, with_credentials=False)
    else:
        role.load(config_file)
    click.echo(f"The configuration is valid ({config_file or 'defaults'} and the environment).")
