"""`collector api users …`."""

from collections.abc import Sequence
from pathlib import Path

import click

from collector.cli.api.change import (
    app_argument,
    call,
    change,
    confirm,
    dry_run_option,
    file_argument,
    input_options,
    yes_option,
)
from collector.cli.api.formats import InputFormat
from collector.cli.api.output import format_option, write_one, write_rows
from collector.cli.api.records import EMAIL_EXPECTED, USERS, USERS_TO_REMOVE, is_email, read
from collector.cli.options import TextType, config_option
from collector.config import load
from collector.contract.models import ProvisionedUser
from collector.contract.operations import DELETE_PROVISIONED_USERS, PUBLISH_PROVISIONED_USERS


@click.group("users")
def command() -> None:
    """Replace, list or delete the users of an app."""


@command.command("push", short_help="Make the users of FILE the users of APP.")
@config_option
@format_option
@dry_run_option
@yes_option
@input_options
@app_argument
@file_argument
def push(
    config_file: Path | None,
    output_format: str | None,
    dry_run: bool,
    yes: bool,
    input_format: InputFormat | None,
    ignore_unknown: bool,
    app_id: str,
    file: str,
) -> None:
    """Make the users of FILE the users of APP, and nobody else (publishProvisionedUsers); "-" is standard input.

    Fields: email, firstName, lastName, role. Whoever is a user now and is not in FILE is one no more: how many these
    are is looked up first, and asked about if there are any.
    """
    upstream = load(config_file, with_credentials=not dry_run).upstream
    users = read(file, USERS, input_format=input_format, ignore_unknown=ignore_unknown).records
    sent = change(PUBLISH_PROVISIONED_USERS, upstream, {"appId": app_id}, records=len(users), dry_run=dry_run)
    if not dry_run:
        before = {user.email for user in call(upstream, lambda client: client.list_users(app_id))}
        after = {user.email for user in users}
        removed = len(before - after)
        click.echo(
            f"users of app {app_id}: {len(before):,} upstream, {len(after):,} in the input; "
            f"{len(after - before):,} will be added, {removed:,} removed",
            err=True,
        )
        if removed:
            confirm(f"Remove {removed:,} of the users of app {app_id}?", yes=yes)
        call(upstream, lambda client: client.set_users(app_id, users))
    write_one(sent, output_format)


@command.command("list")
@config_option
@format_option
@app_argument
def list_(config_file: Path | None, output_format: str | None, app_id: str) -> None:
    """All users of APP (getProvisionedUsers)."""
    users = call(load(config_file).upstream, lambda client: client.list_users(app_id))
    write_rows(users, ProvisionedUser, output_format)


@command.command("delete", short_help="Take users from APP.")
@config_option
@format_option
@dry_run_option
@yes_option
@input_options
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    help='File of records with an email each; "-" is standard input.',
)
@app_argument
@click.argument("emails", nargs=-1, metavar="[EMAIL]...", type=TextType())
def delete(
    config_file: Path | None,
    output_format: str | None,
    dry_run: bool,
    yes: bool,
    input_format: InputFormat | None,
    ignore_unknown: bool,
    file: str | None,
    app_id: str,
    emails: Sequence[str],
) -> None:
    """Take users from APP: those named by EMAIL and those of a file (deleteProvisionedUsers)."""
    if wrong := [email for email in emails if not is_email(email)]:
        raise click.BadParameter(f"{wrong[0]!r}; expected {EMAIL_EXPECTED}", param_hint="EMAIL")
    if not emails and file is None:
        raise click.UsageError("Give at least one EMAIL, or --file.")
    upstream = load(config_file, with_credentials=not dry_run).upstream
    listed = read(file, USERS_TO_REMOVE, input_format=input_format, ignore_unknown=ignore_unknown) if file else None
    removed = list(dict.fromkeys([*emails, *(user.email for user in (listed.records if listed else ()))]))
    sent = change(DELETE_PROVISIONED_USERS, upstream, {"appId": app_id}, records=len(removed), dry_run=dry_run)
    if not dry_run:
        confirm(f"Remove {len(removed):,} of the users of app {app_id}?", yes=yes)
        call(upstream, lambda client: client.delete_users(app_id, removed))
    write_one(sent, output_format)
