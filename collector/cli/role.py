"""What one `collector run` is for: both halves of the work, or one of them."""

from enum import Enum
from pathlib import Path

import click

from collector.config import Config, load


class Role(Enum):
    """Which half of the work a process does. Two of them, on one queue, are as one that does all."""

    ALL = "all"
    INGEST = "ingest"
    FLUSH = "flush"

    @property
    def listens(self) -> bool:
        """It takes events from others."""
        return self is not Role.FLUSH

    @property
    def delivers(self) -> bool:
        """It sends events to upstream, for which it needs credentials."""
        return self is not Role.INGEST

    def load(self, file: Path | None) -> Config:
        """The configuration, checked for what this role needs. Raises ConfigInvalid."""
        return load(file, with_credentials=self.delivers, with_listeners=self.listens)


role_option = click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    callback=lambda _context, _parameter, value: Role(value),
    default=Role.ALL.value,
    envvar="COLLECTOR_ROLE",
    show_default=True,
    show_envvar=True,
    help="Two processes on one queue: ingest takes events, without credentials; flush delivers, and listens nowhere.",
)
