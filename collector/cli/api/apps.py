"""`collector api apps …`."""

import re
from pathlib import Path

import click

from collector.cli.api.change import call, change, dry_run_option
from collector.cli.api.output import format_option, write_one, write_rows
from collector.cli.options import TextType, config_option
from collector.config import load
from collector.contract.models import AppSetup, AppSummary
from collector.contract.operations import SETUP_APPLICATION

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
"""A scheme and what it leads to (RFC 3986 section 3), in any script."""


@click.group("apps")
def command() -> None:
    """Make an app; list apps, show one."""


@command.command("create")
@config_option
@format_option
@dry_run_option
@click.argument("name", type=TextType())
@click.option("--description", type=TextType())
@click.option("--category", type=TextType())
@click.option("--url", type=TextType())
def create(
    config_file: Path | None,
    output_format: str | None,
    dry_run: bool,
    name: str,
    description: str | None,
    category: str | None,
    url: str | None,
) -> None:
    """Make an app called NAME and print its appId (setupApplication).

    Made twice it may be there twice. So it is not tried again where the answer got lost: exit code 3 says that the app
    may exist.
    """
    if not name.strip():
        raise click.BadParameter("empty; expected a name", param_hint="NAME")
    if url is not None and not _URI.fullmatch(url):
        raise click.BadParameter(f"{url!r}; expected a URL such as https://wiki.example.com", param_hint="--url")
    upstream = load(config_file, with_credentials=not dry_run).upstream
    if dry_run:
        write_one(change(SETUP_APPLICATION, upstream, {}, records=1, dry_run=True), output_format)
    else:
        setup = AppSetup(name, description, category, url)
        write_one(
            call(upstream, lambda client: client.create_app(setup), not_replayable=SETUP_APPLICATION), output_format
        )


@command.command("list")
@config_option
@format_option
def list_(config_file: Path | None, output_format: str | None) -> None:
    """All apps of the portfolio, in short (getAppSummaries)."""
    apps = call(load(config_file).upstream, lambda client: client.list_apps())
    write_rows(apps, AppSummary, output_format)


@command.command("show")
@config_option
@format_option
@click.argument("application_id", metavar="ID", type=TextType())
def show(config_file: Path | None, output_format: str | None, application_id: str) -> None:
    """One app at length (getAppDetails). Its figures lag by up to a day."""
    write_one(call(load(config_file).upstream, lambda client: client.show_app(application_id)), output_format)
