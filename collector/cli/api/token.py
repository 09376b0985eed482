"""`collector api token`: whether the credentials are good."""

from pathlib import Path

import click
import msgspec

from collector.cli.api.change import call
from collector.cli.api.output import format_option, write, write_one
from collector.cli.options import config_option
from collector.config import load
from collector.contract.operations import SCOPE_READ, SCOPE_WRITE


class Grant(msgspec.Struct, rename="camel", frozen=True):
    """What upstream has granted, but for the token."""

    scope: str
    token_type: str
    expires_in_seconds: int


@click.command("token")
@config_option
@format_option
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["push", "export"]),
    default="push",
    show_default=True,
    help="The operations that the token is for: its scope is upstream.scope or upstream.export_scope.",
)
@click.option("--show", is_flag=True, help="Print the token itself, and nothing else.")
def command(config_file: Path | None, output_format: str | None, purpose: str, show: bool) -> None:
    """Ask for an access token and say for which scope it is good and how long (getAccessToken)."""
    upstream = load(config_file).upstream
    scope, asked = (SCOPE_WRITE, upstream.scope) if purpose == "push" else (SCOPE_READ, upstream.export_scope)
    token = call(upstream, lambda client: client.access_token(scope))
    if show:
        write(f"{token.access_token}\n".encode())
    else:
        write_one(Grant(asked, token.token_type, token.expires_in), output_format)
