"""`collector api …`: one command for each operation of the API."""

import click

from collector.cli.lazy import LazyGroup

COMMANDS = {
    "apps": ("collector.cli.api.apps", "Make an app; list apps, show one."),
    "audit-events": ("collector.cli.api.audit", "What people did on the platform, once or for ever."),
    "events": ("collector.cli.api.events", "Send usage events of an app."),
    "org-chart": ("collector.cli.api.org_chart", "Send people of the org chart."),
    "spend": ("collector.cli.api.spend", "Send spend on an app."),
    "token": ("collector.cli.api.token", "Ask for an access token: are the credentials good?"),
    "upload": ("collector.cli.api.upload", "Upload files for an app."),
    "users": ("collector.cli.api.users", "Replace, list or delete the users of an app."),
    "workflows": ("collector.cli.api.workflows", "Provisioning workflows and their executions."),
}


@click.group("api", cls=LazyGroup, modules=COMMANDS)
def command() -> None:
    """Call the operations of the Productiv Developer API, with the credentials of the daemon's configuration.

    Input is CSV (the contract's field names as header), JSON or NDJSON, and is checked whole before anything is sent.
    Output goes to standard output as a table on a terminal; else as ndjson, or as json where it is one object.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nobody knows whether upstream has acted, 75 not now, 77 credentials
    refused, 78 wrong configuration.
    """
