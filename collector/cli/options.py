"""What several commands share: the --config option; addresses, times and durations on the command line."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from collector.config.kinds import Address, Refused, Seconds, duration, parse_address, seconds

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


class TimeType(click.ParamType[datetime]):
    """A point in time, in UTC: ISO 8601 (UTC where it names no zone), so long ago as `-7d`, or `now`."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that the text stands for, with its zone."""
        if isinstance(value, datetime):
            return value
        try:
            if value == "now" or value.startswith("-"):
                ago = timedelta(seconds=0 if value == "now" else seconds(value[1:]))
                return datetime.now(UTC) - ago
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; expected ISO 8601 such as 2026-01-31T12:00:00Z (UTC where it names no zone), "
                "so long ago as -7d, -12h or -30m, or now",
                param,
                ctx,
            )


class DurationType(click.ParamType[Seconds]):
    """A length of time between two others, as the configuration writes them: `60s`."""

    name = "DURATION"

    def __init__(self, minimum: str, maximum: str) -> None:
        self._kind = duration("", minimum, maximum)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Seconds:
        """The seconds that the text stands for."""
        try:
            return Seconds(value) if isinstance(value, float) else Seconds(self._kind.parse(value))
        except ValueError:
            self.fail(f"{value!r}; expected {self._kind.allowed}", param, ctx)
