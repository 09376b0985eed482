"""`collector api events push`."""

from pathlib import Path

import click

from collector.cli.api.change import (
    app_argument,
    call,
    change,
    dry_run_option,
    file_argument,
    input_options,
    progress,
)
from collector.cli.api.formats import InputFormat
from collector.cli.api.output import format_option, write_one
from collector.cli.api.records import EVENTS, read
from collector.cli.options import config_option
from collector.config import load
from collector.contract.models import MAX_EVENTS_PER_REQUEST
from collector.contract.operations import PUBLISH_USAGE_EVENTS


@click.group("events")
def command() -> None:
    """Send usage events of an app."""


@command.command("push", short_help="Send the events of FILE to APP.")
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
    """Send the events of FILE to APP, 1000 a request (publishUsageEvents); "-" is standard input.

    Fields: timestamp (milliseconds since the epoch), email, eventName. Sent a second time they do no harm.

    This sends directly and stores nothing. Where events must not be lost, let a running collector deliver them:
    `collector push` sends files to it.
    """
    upstream = load(config_file, with_credentials=not dry_run).upstream
    events = read(file, EVENTS, input_format=input_format, ignore_unknown=ignore_unknown).records
    sent = change(
        PUBLISH_USAGE_EVENTS,
        upstream,
        {"appId": app_id},
        records=len(events),
        dry_run=dry_run,
        requests=-(-len(events) // MAX_EVENTS_PER_REQUEST),
    )
    if not dry_run:
        with progress(events, "events") as shown:
            call(upstream, lambda client: client.push_events(app_id, shown))
    write_one(sent, output_format)
