"""What the system must have, and the project's wheels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]


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


def outer_python() -> Path:
    """The interpreter that this environment was made with: it has pip."""
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if not python.exists():
        missing(f"{python}, which this environment was made with, is not there")
    return python


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel and those of all that it needs."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [str(outer_python()), "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    words = ["--constraint", str(ROOT / "constraints.txt"), "--wheel-dir", str(folder), str(ROOT)]
    ended = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder
