"""`collector api org-chart push`."""

from pathlib import Path

import click

from collector.cli.api.change import call, change, dry_run_option, file_argument, input_options, progress
from collector.cli.api.formats import InputFormat
from collector.cli.api.output import format_option, write_one
from collector.cli.api.records import ORG_CHART, read
from collector.cli.options import config_option
from collector.config import load
from collector.contract.models import MAX_ORG_CHART_USERS_PER_REQUEST
from collector.contract.operations import PUBLISH_ORG_CHART


@click.group("org-chart")
def command() -> None:
    """Send people of the org chart."""


@command.command("push", short_help="Merge the people of FILE into the org chart.")
@config_option
@format_option
@dry_run_option
@input_options
@file_argument
def push(
    config_file: Path | None,
    output_format: str | None,
    dry_run: bool,
    input_format: InputFormat | None,
    ignore_unknown: bool,
    file: str,
) -> None:
    """Merge the people of FILE into the org chart, 1000 a request (publishOrgChart); "-" is standard input.

    Fields: email, firstName, lastName, managerEmail, department, title. A JSON object may hold customFieldsConfig
    beside users, or alone. Sent a second time they do no harm.
    """
    upstream = load(config_file, with_credentials=not dry_run).upstream
    users, beside = read(file, ORG_CHART, input_format=input_format, ignore_unknown=ignore_unknown)
    custom_fields = beside.get("customFieldsConfig", ())
    sent = change(
        PUBLISH_ORG_CHART,
        upstream,
        {},
        records=len(users),
        dry_run=dry_run,
        requests=max(1, -(-len(users) // MAX_ORG_CHART_USERS_PER_REQUEST)),
    )
    if not dry_run:
        with progress(users, "people") as shown:
            call(upstream, lambda client: client.push_org_chart(shown, custom_fields))
    write_one(sent, output_format)
