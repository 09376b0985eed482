"""`collector api spend push`."""

from pathlib import Path

import click

from collector.cli.api.change import app_argument, call, change, dry_run_option, file_argument, input_options
from collector.cli.api.formats import InputFormat
from collector.cli.api.output import format_option, write_one
from collector.cli.api.records import SPEND, read
from collector.cli.options import config_option
from collector.config import load
from collector.contract.operations import PUBLISH_SPEND_DATA


@click.group("spend")
def command() -> None:
    """Send spend on an app."""


@command.command("push", short_help="Send the spend records of FILE to APP.")
@config_option
@format_option
@dry_run_option
@input_options
@app_argument
@file_argument
def push(
    config_file: Path | None,
    output_format: str | None,
    dry_run: bool,
    input_format: InputFormat | None,
    ignore_unknown: bool,
    app_id: str,
    file: str,
) -> None:
    """Send the spend records of FILE to APP in one request (publishSpendData); "-" is standard input.

    Fields: amount, currency, date, description. Sent twice they may count twice. So they are not sent again where the
    answer got lost: exit code 3 says that they may be booked.
    """
    upstream = load(config_file, with_credentials=not dry_run).upstream
    records = read(file, SPEND, input_format=input_format, ignore_unknown=ignore_unknown).records
    sent = change(PUBLISH_SPEND_DATA, upstream, {"appId": app_id}, records=len(records), dry_run=dry_run)
    if not dry_run:
        call(upstream, lambda client: client.push_spend(app_id, records), not_replayable=PUBLISH_SPEND_DATA)
    write_one(sent, output_format)
