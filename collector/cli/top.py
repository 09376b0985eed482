"""`collector top`: the status, live."""

import sys
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from collector.cli.options import place_options
from collector.cli.screen import screen
from collector.cli.status import exit_code, look


@click.command("top", short_help="Show how the collector is, live.")
@place_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many looks; default: on Ctrl+C.")
@click.option("--json", "as_json", is_flag=True, help="The document as one JSON object a line.")
def command(
    config_file: Path | None,
    url: str | None,
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
        looks = 0
        while True:
            where, status = look(config_file, url, token_file, timeout)
            code = exit_code(status)
            if as_json:
                click.echo(msgspec.json.encode(status))
            elif live is not None:
                live.update(Text.from_ansi(screen(status, str(where))), refresh=True)
            else:
                click.echo(screen(status, str(where)) + "\n")
            looks += 1
            if looks == count:
                break
            time.sleep(interval)
    except KeyboardInterrupt:
        pass
    finally:
        if live is not None:
            live.stop()
    sys.exit(code)
