"""What several commands share: the --config option, and addresses on the command line."""

from pathlib import Path
from typing import Any

import click

from collector.config.kinds import Address, Refused, parse_address

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="COLLECTOR_CONFIG",
    help="TOML file; COLLECTOR_… variables win over it.",
)


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
