"""`collector healthcheck`: whether the collector lives, for a container's HEALTHCHECK and for scripts."""

import sys
from pathlib import Path

import click
import msgspec

from collector.cli.options import place_options, plain
from collector.cli.reach import Place, Unreachable, ask, place, reason
from collector.config import load


@click.command("healthcheck")
@place_options
@click.option("--ready", is_flag=True, help="Ask whether events should be sent to it now, not only whether it lives.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    config_file: Path | None, at: Place | None, token_file: Path | None, timeout: float, ready: bool, as_json: bool
) -> None:
    """Ask the collector whether it lives. Exit code 0 if it does, 1 otherwise.

    \b
    In a container:
      HEALTHCHECK CMD ["collector", "healthcheck"]
    """  # noqa: D301 - click keeps the lines after \b as they are
    where = place(at, token_file, lambda: load(config_file, with_credentials=False))
    try:
        status, body = ask(where, "/readyz" if ready else "/healthz", timeout_seconds=timeout)
    except Unreachable as error:
        healthy, said = False, str(error)
    else:
        healthy = status == 200
        why_not = plain(reason(body) or "") or f"it answered {status}"
        said = f"{where} is {'ready' if ready else 'alive'}" if healthy else f"{where}: {why_not}"
    if as_json:
        click.echo(msgspec.json.encode({"healthy": healthy, "said": said}))
    else:
        click.echo(said, err=not healthy)
    sys.exit(0 if healthy else 1)
