"""`collector demo`: the main job, an outage, and the books."""

import asyncio
import os

import msgspec
import pytest

from collector.cli.demo import Books
from tests.e2e.daemon import command

AGREEING = Books(
    sent=10, sent_distinct=8, accepted=8, duplicates=2, delivered=8, sandbox_received=9, sandbox_distinct=8
)


async def test_without_a_terminal_it_shows_the_outage_in_plain_lines_and_its_books_agree() -> None:
    process = await asyncio.create_subprocess_exec(
        *command("demo"), env={**os.environ, "COLUMNS": "80"}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    lines = out.decode().splitlines()
    assert process.returncode == 0
    assert "\x1b" not in out.decode()
    waiting = [int(line.split("waiting")[1].split()[0].replace(",", "")) for line in lines if "DOWN" in line]
    assert len(waiting) >= 2
    assert waiting == sorted(waiting)
    assert waiting[-1] > 1000
    assert lines[-1] == "They agree: every event that was accepted is at the sandbox, once."


def test_books_that_agree_have_nothing_to_say() -> None:
    assert AGREEING.disagreements() == []


@pytest.mark.parametrize(
    "name", ["sent", "sent_distinct", "accepted", "duplicates", "waiting", "delivered", "sandbox_distinct"]
)
def test_one_figure_that_is_off_is_a_disagreement(name: str) -> None:
    off = msgspec.structs.replace(AGREEING, **{name: getattr(AGREEING, name) + 1})
    assert off.disagreements()
