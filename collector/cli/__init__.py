"""The command line: it owns signals, exit codes, the log's set-up and what people see; nothing else does.

Exit codes: 0 done, 1 it failed (the message says why), 2 wrong usage, 78 wrong configuration (sysexits' EX_CONFIG).
"""

import importlib
import sys
from typing import Any

import click

from collector.errors import CollectorError, ConfigInvalid
from collector.version import __version__

EXIT_FAILED = 1
EXIT_CONFIG = 78

COMMANDS = {
    "check-config": ("collector.cli.check_config", "Check the configuration and list every problem."),
    "completion": ("collector.cli.completion", "Print a shell's completion script."),
    "demo": ("collector.cli.demo", "Show the main job: sandbox, collector, an outage, and the books."),
    "healthcheck": ("collector.cli.healthcheck", "Ask whether the collector lives, or takes events."),
    "push": ("collector.cli.push", "Send events from NDJSON files to a running collector."),
    "queue": ("collector.cli.queue", "Look into the queue."),
    "run": ("collector.cli.run", "Run the collector until SIGTERM or SIGINT."),
    "sandbox": ("collector.cli.sandbox", "Run a local server of the Productiv Developer API."),
    "status": ("collector.cli.status", "Show how the collector is, on one screen."),
    "top": ("collector.cli.top", "Show how the collector is, live."),
}


class _Commands(click.Group):
    """Imports a command's module when it is called: each brings libraries that the others need not wait for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in sorted(COMMANDS.items())])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except ConfigInvalid as error:
            click.echo(f"The configuration has problems:\n{error}", err=True)
            sys.exit(EXIT_CONFIG)
        except CollectorError as error:
            click.echo(f"collector: {error}", err=True)
            sys.exit(EXIT_FAILED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="collector")
def main() -> None:
    """Collects usage events from local apps and delivers them to Productiv, each exactly once.

    \b
    collector check-config                every problem of the configuration at once
    collector run --config FILE           the daemon; apps post to http://127.0.0.1:8787/v1/events
    collector status                      how it is; http://127.0.0.1:8787/ shows the same in a browser
    collector push events.ndjson.gz       sends files of events

    Settings come from a TOML file (--config, COLLECTOR_CONFIG) and from the environment, which wins:
    [upstream] client_id is COLLECTOR_UPSTREAM__CLIENT_ID. `collector COMMAND --help` says more.

    Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage, 78 wrong configuration.
    """  # noqa: D301 - click keeps the lines after \b as they are
