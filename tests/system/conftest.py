"""What the system must have."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of a program. Skips the test where there is none, or fails it where system tests are required."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is not None:
        return path
    if os.environ.get("COLLECTOR_SYSTEM_TESTS") == "required":
        pytest.fail(f"{name} is not installed, and system tests are required")
    pytest.skip(f"{name} is not installed")
