"""`collector top`: the status, live."""

import itertools
import sys
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from collector.cli import EXIT_FAILED, EXIT_NOT_RUNNING
from collector.cli.options import SecondsType, place_options, plain
from collector.cli.reach import Busy, Place, Unreachable
from collector.cli.screen import screen, terminal_columns
from collector.cli.status import exit_code, look, unreachable_json


@click.command("top")
@place_options
@click.option(
    "--interval",
    type=SecondsType(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many looks; default: on Ctrl+C.")
@click.option("--json", "as_json", is_flag=True, help="The document as one JSON object a line.")
def command(
    config_file: Path | None,
    at: Place | None,
    token_file: Path | None,
    timeout: float,
    interval: float,
    count: int | None,
    as_json: bool,
) -> None:
    """Show what `collector status` shows, again and again. The exit code is that of the last look."""
    code = 0
    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False) if console.is_terminal and not as_json else None
    try:
        if live is not None:
            live.start()
        for look_number in itertools.count(1):
            code, text = _look(config_file, at, token_file, timeout, as_json)
            if live is not None:
                live.update(Text.from_ansi(text), refresh=True)
            else:
                click.echo(text)
            if look_number == count:
                break
            time.sleep(interval)
    except KeyboardInterrupt:
        pass
    finally:
        if live is not None:
            live.stop()
    sys.exit(code)


def _look(
    config_file: Path | None, at: Place | None, token_file: Path | None, timeout: float, as_json: bool
) -> tuple[int, str]:
    """Exit code and text of one look; a collector that is gone may come back."""
    try:
        where, status = look(config_file, at, token_file, timeout)
    except (Busy, Unreachable) as error:
        code = EXIT_FAILED if isinstance(error, Busy) else EXIT_NOT_RUNNING
        return code, unreachable_json(error) if as_json else plain(str(error))
    text = msgspec.json.encode(status).decode() if as_json else screen(status, str(where), terminal_columns()) + "\n"
    return exit_code(status), text
