"""`collector api workflows …`."""

from datetime import datetime
from pathlib import Path

import click

from collector.cli.api.change import call
from collector.cli.api.output import format_option, write_one, write_rows
from collector.cli.options import MomentType, TextType, config_option
from collector.config import load
from collector.contract.models import ExecutionSummary, Workflow


@click.group("workflows")
def command() -> None:
    """Provisioning workflows and their executions."""


@command.command("list")
@config_option
@format_option
def list_(config_file: Path | None, output_format: str | None) -> None:
    """All provisioning workflows (listProvisioningWorkflows)."""
    workflows = call(load(config_file).upstream, lambda client: client.list_workflows())
    write_rows(workflows, Workflow, output_format)


@command.command("executions", short_help="The executions of a workflow in a range of time.")
@config_option
@format_option
@click.argument("workflow_id", metavar="ID", type=TextType())
@click.option("--since", type=MomentType(), help="ISO 8601, or so long ago as -7d. Without it, what upstream decides.")
@click.option("--until", type=MomentType(), help="The same; itself left out.")
def executions(
    config_file: Path | None,
    output_format: str | None,
    workflow_id: str,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """The executions of a workflow in a range of time, in short (listProvisioningExecutionSummaries)."""
    if since and until and since >= until:
        raise click.UsageError("--since is not before --until.")
    rows = call(load(config_file).upstream, lambda client: client.list_executions(workflow_id, since, until))
    write_rows(rows, ExecutionSummary, output_format)


@command.command("execution", short_help="One execution with its outcome for each user.")
@config_option
@format_option
@click.argument("workflow_id", metavar="ID", type=TextType())
@click.argument("execution_id", metavar="EXECUTION", type=TextType())
def execution(config_file: Path | None, output_format: str | None, workflow_id: str, execution_id: str) -> None:
    """One execution with its outcome for each user (getProvisioningWorkflowExecution)."""
    found = call(load(config_file).upstream, lambda client: client.show_execution(workflow_id, execution_id))
    write_one(found, output_format)
