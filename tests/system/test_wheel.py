"""The built wheel in an empty environment: it has all that it needs, and it needs nothing of the checkout."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from collector.version import __version__
from tests.system.conftest import ROOT, outer_python


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """The command of an environment into which the wheel was installed, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    python = outer_python()
    venv = folder / "venv"
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--no-index", "--find-links", str(wheels), "usage-collector"], check=True
    )
    return venv / "bin" / "collector"


def said(collector: Path, *words: str, cwd: Path) -> str:
    ended = subprocess.run([str(collector), *words], cwd=cwd, env={}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_wheel_alone_runs_writes_its_configuration_and_brings_its_units(collector: Path, tmp_path: Path) -> None:
    assert said(collector, "--version", cwd=tmp_path).strip().endswith(__version__)
    said(collector, "init", cwd=tmp_path)
    said(collector, "check-config", "--without-credentials", "--config", "collector.toml", cwd=tmp_path)
    ask = "import collector.cli.units as u; [u.unit(n, command=u.own_command()) for n in u.ALL_IN_ONE + u.SPLIT]"
    subprocess.run([str(collector.with_name("python")), "-c", ask], cwd=tmp_path, env={}, check=True)


def test_every_file_of_the_package_is_in_the_wheel(wheels: Path) -> None:
    (wheel,) = wheels.glob("usage_collector-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("collector/")}
    own = {file.relative_to(ROOT) for file in (ROOT / "collector").rglob("*") if file.is_file()}
    units = {f"collector/systemd_units/{file.name}" for file in (ROOT / "systemd").iterdir()}
    assert packed == {str(file) for file in own if file.suffix != ".pyc"} | units
