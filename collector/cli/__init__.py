"""The command line: it owns signals, exit codes, the log's set-up and what people see; nothing else does.

Exit codes: 0 done, 1 it failed (the message says why), 2 wrong usage, 3 nobody knows whether upstream has acted (look
before you try again), 69 no collector answers (sysexits' EX_UNAVAILABLE), 75 not now (the same command may succeed
later; EX_TEMPFAIL), 77 credentials refused (EX_NOPERM), 78 wrong configuration (EX_CONFIG).
"""

import io
import os
import sys
from typing import Any

import click

from collector.cli.lazy import LazyGroup
from collector.errors import (
    ChunkFailed,
    CollectorError,
    ConfigInvalid,
    CredentialsRefused,
    OutcomeUnknown,
    Retryable,
)
from collector.version import __version__

EXIT_FAILED = 1
EXIT_OUTCOME_UNKNOWN = 3
EXIT_NOT_RUNNING = 69
EXIT_NOT_NOW = 75
EXIT_CREDENTIALS = 77
EXIT_CONFIG = 78

COMMANDS = {
    "api": ("collector.cli.api", "Call the operations of the Productiv Developer API."),
    "check-config": ("collector.cli.check_config", "Check the configuration and list every problem."),
    "completion": ("collector.cli.completion", "Print a shell's completion script."),
    "demo": ("collector.cli.demo", "Show the main job: sandbox, collector, an outage, and the books."),
    "drain": ("collector.cli.drain", "Wait until everything is delivered."),
    "healthcheck": ("collector.cli.healthcheck", "Ask whether the collector lives, or takes events."),
    "init": ("collector.cli.init", "Write a configuration, and install the systemd units."),
    "push": ("collector.cli.push", "Send events from NDJSON files to a running collector."),
    "queue": ("collector.cli.queue", "Look into the queue, and mend it: dead letters, broken files."),
    "replay": ("collector.cli.replay", "Send delivered events once more."),
    "run": ("collector.cli.run", "Run the collector until SIGTERM or SIGINT."),
    "sandbox": ("collector.cli.sandbox", "Run a local server of the Productiv Developer API."),
    "status": ("collector.cli.status", "Show how the collector is, on one screen."),
    "top": ("collector.cli.top", "Show how the collector is, live."),
}


class _Main(LazyGroup):
    """Turns errors into a message and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _occupy_closed_streams()
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it
        if os.environ.get("NO_COLOR"):  # https://no-color.org
            kwargs.setdefault("color", False)
        try:
            return super().main(*args, **kwargs)
        except ConfigInvalid as error:
            click.echo(f"The configuration has problems:\n{error}", err=True)
            sys.exit(EXIT_CONFIG)
        except CollectorError as error:
            click.echo(f"collector: {error}", err=True)
            sys.exit(exit_code(error))
        except OSError as error:  # of a file that the command line names, or of what standard output leads to
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"collector: {place}{error.strerror or error}", err=True)
            sys.stdout = io.StringIO()  # whose buffer would be tried once more at the end
            sys.exit(EXIT_FAILED)


def _occupy_closed_streams() -> None:
    """No file or socket will get the number of a standard stream that whoever started this has closed.

    Else what is meant for standard output would go there, and uvloop would end the process. What stands there can
    neither be read nor written as the stream would be, so that using it is an error still.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)  # takes the lowest number that is free


def exit_code(error: BaseException | None) -> int:
    """What a command that failed for this reason ends with."""
    if isinstance(error, ChunkFailed):
        return exit_code(error.__cause__)
    if isinstance(error, OutcomeUnknown):
        return EXIT_OUTCOME_UNKNOWN
    if isinstance(error, Retryable):
        return EXIT_NOT_NOW
    return EXIT_CREDENTIALS if isinstance(error, CredentialsRefused) else EXIT_FAILED


@click.group(cls=_Main, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="collector")
def main() -> None:
    """Collects usage events from local apps and delivers them to Productiv, which counts each once.

    \b
    collector init                        writes a configuration to edit
    collector check-config                every problem of the configuration at once
    collector run --config FILE           the daemon; apps post to http://127.0.0.1:8787/v1/events
    collector status                      how it is; http://127.0.0.1:8787/ shows the same in a browser
    collector push events.ndjson.gz       sends files of events

    Settings come from a TOML file (--config, COLLECTOR_CONFIG) and from the environment, which wins:
    [upstream] client_id is COLLECTOR_UPSTREAM__CLIENT_ID. `collector COMMAND --help` says more.

    Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage, 3 nobody knows whether upstream has acted,
    69 no collector answers, 75 not now, 77 credentials refused, 78 wrong configuration.
    """  # noqa: D301 - click keeps the lines after \b as they are
