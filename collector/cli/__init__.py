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
    "demo": ("collector.cli.demo", "Show the main job: sandbox, collector, an outage, and the books."),
    "push": ("collector.cli.push", "Send events from NDJSON files to a running collector."),
    "queue": ("collector.cli.queue", "Look into the queue, and mend it: dead letters, broken files."),
    "replay": ("collector.cli.replay", "Send delivered events once more."),
    "run": ("collector.cli.run", "Run the collector until SIGTERM or SIGINT."),
    "sandbox": ("collector.cli.sandbox", "Run a local server of the Productiv Developer API."),
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
    """Collects usage events from local apps and delivers them to Productiv, each exactly once."""
