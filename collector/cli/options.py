"""What several commands share: the --config option, where a collector is, and addresses on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from collector.config.kinds import Address, Refused, parse_address

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="COLLECTOR_CONFIG",
    help="TOML file; COLLECTOR_… variables win over it.",
)


Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """Where to ask, for commands that look at a running collector."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=3.0,
            show_default=True,
            help="Seconds to wait.",
        ),
        click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File whose first token is shown to the collector; default: access.tokens_file.",
        ),
        click.option(
            "--url",
            metavar="URL",
            help="http://HOST:PORT or unix:PATH; default: where the configuration says that it listens.",
        ),
        config_option,
    ):
        command = option(command)
    return command


class AddressType(click.ParamType[Address]):
    """HOST:PORT."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """The address that the text stands for."""
        if isinstance(value, Address):
            return value
        try:
            return parse_address(value)
        except Refused as refused:
            self.fail(str(refused), param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not HOST:PORT with a port from 0 to 65535", param, ctx)
