"""The example configuration says what the model says."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec

import collector
from collector.config import Config, load
from collector.config.example import WIDTH, example_toml
from collector.config.kinds import Secret
from collector.config.load import keys

EXAMPLE = Path(collector.__file__).parents[1] / "config.example.toml"
CREDENTIALS = {"COLLECTOR_UPSTREAM__CLIENT_ID": "client", "COLLECTOR_UPSTREAM__CLIENT_SECRET": "hunter2"}


def test_the_example_is_written_from_the_model() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == example_toml(), "python -m collector.config > config.example.toml"


def test_the_command_that_renews_the_example_writes_it() -> None:
    command = [sys.executable, "-m", "collector.config"]
    written = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    assert (written.stdout, written.stderr) == (example_toml(), "")


def test_the_example_loads_to_the_defaults() -> None:
    config = load(EXAMPLE, CREDENTIALS)
    upstream = msgspec.structs.replace(config.upstream, client_id=None, client_secret=None)
    assert msgspec.structs.replace(config, upstream=upstream) == Config()
    assert (config.upstream.client_id, config.upstream.client_secret) == ("client", Secret("hunter2"))


def test_every_key_stands_in_its_section_with_its_default_or_commented_out() -> None:
    found: list[tuple[str, str, bool]] = []
    section = ""
    for line in example_toml().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif member := re.fullmatch(r"(# )?(\w+) = .+", line):
            found.append((section, member[2], member[1] is None))
    assert found == [(key.section, key.name, key.default is not None) for key in keys()]


def test_a_key_without_default_can_be_had_by_taking_its_comment_sign_away() -> None:
    commented = [f"{key.name} = " for key in keys() if key.default is None]
    lines = [line[2:] if line[2:].startswith(tuple(commented)) else line for line in example_toml().splitlines()]
    document = tomllib.loads("\n".join(lines))
    assert {(s, name) for s, members in document.items() for name in members} == {(k.section, k.name) for k in keys()}


def test_every_key_says_what_it_is_for_and_what_it_allows() -> None:
    prose = " ".join(example_toml().replace("\n#   ", " ").split())
    for key in keys():
        assert f"# {key.kind.about} # Allowed: {key.kind.allowed}. " in prose


def test_no_line_is_too_long_to_read() -> None:
    assert max(map(len, example_toml().splitlines())) <= WIDTH
