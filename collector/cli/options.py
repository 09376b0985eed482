"""What several commands share: the --config option, and addresses and times on the command line."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from collector.clock import Clock
from collector.config.kinds import Address, Refused, parse_address, seconds

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


class TimeType(click.ParamType[int]):
    """An instant, in milliseconds since the epoch: ISO 8601 (UTC where it has no offset), or `-7d` for a time ago."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The instant that the text stands for."""
        if isinstance(value, int):
            return value
        try:
            if value.startswith("-"):
                return Clock().now_ms() - round(seconds(value[1:]) * 1000)
            instant = datetime.fromisoformat(value)
            return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; allowed: ISO 8601 such as 2026-01-31 or 2026-01-31T12:00:00Z (without an "
                "offset it is UTC), or a time ago such as -7d, -12h, -90m",
                param,
                ctx,
            )
