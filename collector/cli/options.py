"""What several commands share: --config, where a collector is, addresses, times and durations; strangers' words."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from collector.cli.reach import Place, parse_place
from collector.config.kinds import Address, Refused, Seconds, duration, is_sendable, parse_address, seconds

GZIP_MAGIC = b"\x1f\x8b"
"""What a gzipped file begins with (RFC 1952)."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
            type=SecondsType(min_open=True),
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
            "at",
            type=PlaceType(),
            help="http://HOST:PORT or unix:PATH; default: where the configuration says that it listens.",
        ),
        config_option,
    ):
        command = option(command)
    return command


def plain(text: str) -> str:
    """What a stranger wrote, for a terminal: without control characters, which could move its cursor or worse."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class SecondsType(click.FloatRange):
    """A number of seconds; at most a day, or as many as somebody likes."""

    def __init__(self, minimum: float = 0.0, maximum: float | None = 86_400.0, *, min_open: bool = False) -> None:
        super().__init__(minimum, maximum, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, which `nan` is not, though it is in no range's way."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return found


class TextType(click.ParamType[str]):
    """Text that can be sent. Names of files need not be: they are bytes."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        if not is_sendable(value):
            self.fail(f"{value!r} is not UTF-8", param, ctx)
        return str(value)


class PlaceType(click.ParamType[Place]):
    """Where a collector listens."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """The place that the text stands for."""
        if isinstance(value, Place):
            return value
        try:
            return parse_place(value)
        except ValueError:
            self.fail(f"{value!r} is not http://HOST:PORT or unix:PATH", param, ctx)


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
                ago = timedelta(seconds=seconds(value[1:]))  # which bounds it
                return time.time_ns() // 10**6 - round(ago / timedelta(milliseconds=1))
            instant = datetime.fromisoformat(value)
            return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; allowed: ISO 8601 such as 2026-01-31 or 2026-01-31T12:00:00Z (without an "
                "offset it is UTC), or a time ago such as -7d, -12h, -90m",
                param,
                ctx,
            )


class MomentType(click.ParamType[datetime]):
    """What `TimeType` takes, or `now`, as a datetime in UTC."""

    name = TimeType.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The instant that the text stands for, to the millisecond."""
        if isinstance(value, datetime):
            return value
        instant_ms = time.time_ns() // 10**6 if value == "now" else TimeType().convert(value, param, ctx)
        try:
            return EPOCH + timedelta(milliseconds=instant_ms)
        except OverflowError:
            self.fail(f"{value!r} is no time; allowed: the years 1 to 9999", param, ctx)


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
