"""What the system must have."""

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str) -> str:
    """The path of a program. Skips the test where there is none, or fails it where system tests are required."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        missing(f"{name} is not installed")
    return path


def missing(what: str) -> NoReturn:
    """Skips the test because of what the system lacks, or fails it where system tests are required."""
    if os.environ.get("COLLECTOR_SYSTEM_TESTS") == "required":
        pytest.fail(f"{what}, and system tests are required")
    pytest.skip(what)
