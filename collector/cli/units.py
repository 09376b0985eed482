"""The systemd units that come with the package, made to fit where it is installed."""

import os
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

WRITTEN_FOR = "/opt/collector/bin/collector"
"""The command as the units in the repository name it."""

ALL_IN_ONE = ("collector.service", "collector.socket")
SPLIT = ("collector-ingest.service", "collector-ingest.socket", "collector-flush.service")
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""What the units' sandbox does not let the daemon see (ProtectHome, PrivateTmp)."""


def unit(name: str, *, command: Path) -> str:
    """The text of a unit, which runs `command`."""
    return _folder().joinpath(name).read_text(encoding="utf-8").replace(WRITTEN_FOR, str(command))


def own_command() -> Path:
    """The `collector` of the interpreter that runs this."""
    return Path(os.path.abspath(sys.executable)).with_name("collector")  # noqa: PTH100 - a venv's link must stay one


def is_hidden(command: Path) -> bool:
    """Whether a unit could not start this command, for its sandbox hides it."""
    return any(command.is_relative_to(folder) for folder in HIDDEN)


def _folder() -> Traversable:
    """The wheel has them in the package; a checkout has them beside it."""
    packaged = files("collector").joinpath("systemd_units")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "systemd"
