"""`collector init`: what it writes works, and nothing that is there is lost."""

import errno
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collector.cli import main, units
from collector.cli.units import ALL_IN_ONE, SPLIT
from collector.config import load
from collector.config.example import example_toml
from tests.config.test_load import CREDENTIALS

UNITS = Path("etc/systemd/system")
CONFIG = Path("etc/collector/config.toml")


def init(*words: str, answer: str = "", status: int = 0) -> str:
    """What it said."""
    result: Result = CliRunner().invoke(main, ["init", *words], input=answer)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("collector.cli.init.own_command", lambda: Path("/usr/lib/collector/bin/collector"))
    return tmp_path / "root"


def test_the_configuration_that_it_writes_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "new" / "collector.toml"
    said = init(str(file))
    assert f"collector run --config {file}" in said
    assert load(file, CREDENTIALS) == load(None, CREDENTIALS)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "somebody may write the secret into it"


def test_a_configuration_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text("# mine\n")
    assert "was left as it is" in init(str(file), status=1)
    assert file.read_text() == "# mine\n"


def test_a_link_that_leads_nowhere_is_left_too(tmp_path: Path) -> None:
    link = tmp_path / "collector.toml"
    link.symlink_to("later.toml")
    assert "was left as it is" in init(str(link), status=1)
    assert link.is_symlink()


def test_a_place_that_nobody_may_look_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.stat", forbidden)
    monkeypatch.setattr("os.lstat", forbidden)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    file = tmp_path / "collector.toml"
    assert f"{file} cannot be written: Permission denied" in init(str(file), status=1)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file/collector.toml cannot be written" in init(f"{tmp_path}/file/collector.toml", status=1)


def test_without_a_path_it_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    init()
    assert Path("collector.toml").exists()


def test_a_dash_is_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("-") == init("-", "--dry-run") == example_toml()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_nothing(root: Path) -> None:
    said = init("--systemd", "--root", str(root), "--dry-run")
    assert f"write   {root / UNITS / 'collector.service'}" in said
    assert not root.exists()
    init(str(root / "collector.toml"), "--dry-run")
    assert not root.exists()


@pytest.mark.parametrize(("words", "names"), [((), ALL_IN_ONE), (("--split",), SPLIT)])
def test_units_run_the_collector_that_installed_them(
    root: Path, words: tuple[str, ...], names: tuple[str, ...]
) -> None:
    said = init("--systemd", *words, "--root", str(root), answer="y\n")
    assert said.index("write") < said.index("Do this?") < said.index("systemctl daemon-reload")
    assert {file.name for file in (root / UNITS).iterdir()} == set(names)
    for name in names:
        text = (root / UNITS / name).read_text()
        assert "=/opt/collector/bin" not in text
        if name.endswith(".service"):
            assert "ExecStart=/usr/lib/collector/bin/collector run" in text
            assert name in said
    assert "/usr/lib/collector/bin/collector check-config" in said
    there = {**CREDENTIALS, "COLLECTOR_QUEUE__PATH": "/var/lib/collector"}
    assert load(root / CONFIG, CREDENTIALS) == load(None, there), "where the units keep it"


def test_who_says_no_gets_nothing(root: Path) -> None:
    init("--systemd", "--root", str(root), answer="n\n", status=1)
    assert not root.exists()


def test_a_second_time_keeps_the_configuration_and_replaces_units_that_differ(root: Path) -> None:
    init("--systemd", "--root", str(root), "--yes")
    (root / CONFIG).write_text("# mine\n")
    unit = root / UNITS / "collector.socket"
    before = unit.read_text()
    unit.write_text("# of an older version\n")
    said = init("--systemd", "--root", str(root), "--yes")
    assert f"keep    {root / CONFIG}" in said
    assert f"replace {unit}" in said
    assert f"keep    {root / UNITS / 'collector.service'}" in said
    assert (root / CONFIG).read_text() == "# mine\n"
    assert unit.read_text() == before


def test_a_collector_that_a_unit_could_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for hidden in ("/home/user/venv/bin/collector", "/root/.local/bin/collector", "/tmp/venv/bin/collector"):  # noqa: S108
        monkeypatch.setattr("collector.cli.init.own_command", lambda hidden=hidden: Path(hidden))
        assert "python3 -m venv /opt/collector" in init("--systemd", "--root", str(tmp_path / "root"), status=1)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("words", [("--split",), ("--systemd", "collector.toml")])
def test_options_that_do_not_go_together_are_refused(words: tuple[str, ...]) -> None:
    assert "--systemd" in init(*words, status=2)


def test_all_units_come_along() -> None:
    folder = Path(__file__).parents[2] / "systemd"
    assert {file.name for file in folder.iterdir()} == {*ALL_IN_ONE, *SPLIT}
    for name in (*ALL_IN_ONE, *SPLIT):
        assert units.unit(name, command=Path(units.WRITTEN_FOR)) == (folder / name).read_text(encoding="utf-8")
