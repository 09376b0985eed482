"""What is logged, where it goes, and what never gets into it.

Set-up of logging is global: what needs one runs in a child process.
"""

import json
import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from collector.observe.logs import SECRET_WORDS, Sampler, get_logger, is_journal, redact


def child(program: str) -> subprocess.CompletedProcess[str]:
    """What a program of its own printed, having ended well."""
    lines = ["import logging", "from collector.observe.logs import configure, get_logger", textwrap.dedent(program)]
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8")


def logged(program: str) -> list[dict[str, Any]]:
    """The lines of JSON that a program logged."""
    ended = child(program)
    assert ended.stdout == ""
    return [json.loads(line) for line in ended.stderr.removesuffix("\n").split("\n")]


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *SECRET_WORDS,
        "client_secret",
        "clientSecret",
        "CLIENT_SECRET",
        "access_token",
        "Authorization",
        "proxy_authorization",
        "db_password",
    ],
)
def test_a_field_named_like_a_secret_loses_its_value(name: str) -> None:
    fields = redact(None, "info", {"event": "part.happened", name: "hunter2", "app": "a"})
    assert fields == {"event": "part.happened", name: "***", "app": "a"}


@pytest.mark.parametrize("value", [None, 7, b"hunter2", ["hunter2"], {"a": "hunter2"}])
def test_a_secret_of_any_type_is_redacted(value: object) -> None:
    assert redact(None, "info", {"token": value}) == {"token": "***"}


def test_other_fields_keep_their_values() -> None:
    fields = {"event": "queue.opened", "app": "a", "events": 7, "error": "the secret word", "key": "k"}
    assert redact(None, "info", dict(fields)) == fields


# -- inside a host program ---------------------------------------------------------------------------------------------


def test_a_host_program_gets_the_event_as_message_and_the_fields_as_attributes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "collector"):
        get_logger("collector.part").warning("part.happened", app="a", events=7, access_token="hunter2")
    [record] = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("collector.part", "WARNING", "part.happened")
    assert (vars(record)["app"], vars(record)["events"], vars(record)["access_token"]) == ("a", 7, "***")


def test_the_host_programs_levels_count(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "collector"):
        log = get_logger("collector.part")
        for say in (log.debug, log.info, log.warning, log.error):
            say("part.happened")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_the_library_writes_nothing_where_nobody_has_set_logging_up() -> None:
    ended = child("get_logger('collector.part').error('part.failed', app='a')")
    assert (ended.stdout, ended.stderr) == ("", "")


def test_the_library_sets_nothing_up_when_it_is_imported() -> None:
    ended = child(
        """
        import structlog
        import collector.agent
        root, own = logging.getLogger(), logging.getLogger("collector")
        print(structlog.is_configured(), root.handlers, root.level, own.handlers, own.level, own.propagate)
        """
    )
    assert ended.stdout == "False [] 30 [<NullHandler (NOTSET)>] 0 True\n"


def test_the_library_does_not_depend_on_how_a_host_program_uses_structlog() -> None:
    ended = child(
        """
        import structlog
        def refuse(*_):
            raise AssertionError("this is the host program's")
        early = get_logger("collector.early")
        structlog.configure(processors=[refuse], wrapper_class=structlog.BoundLogger, logger_factory=refuse)
        logging.basicConfig(level="INFO", format="%(name)s %(message)s %(app)s")
        early.info("part.happened", app="a")
        get_logger("collector.late").info("part.happened", app="b")
        """
    )
    assert ended.stderr == "collector.early part.happened a\ncollector.late part.happened b\n"


# -- on the command line -----------------------------------------------------------------------------------------------


def test_json_lines_carry_event_level_time_and_fields_and_no_secret() -> None:
    [line] = logged(
        """
        configure("info", "json")
        get_logger("collector.part").warning("part.happened", app="a", events=7, client_secret="hunter2")
        """
    )
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "part.happened", "level": "warning", "app": "a", "events": 7, "client_secret": "***"}


def test_a_level_silences_what_is_less_severe() -> None:
    lines = logged(
        """
        levels = ["debug", "info", "warning", "error"]
        log = get_logger("collector.part")
        for level in levels:
            configure(level, "json")
            for said in levels:
                getattr(log, said)("part.happened", configured=level)
        """
    )
    heard = [(line["configured"], line["level"]) for line in lines]
    levels = ["debug", "info", "warning", "error"]
    assert heard == [(level, said) for place, level in enumerate(levels) for said in levels[place:]]


def test_of_other_libraries_only_warnings_are_heard() -> None:
    lines = logged(
        """
        configure("debug", "json")
        logging.getLogger("other").info("chatter")
        logging.getLogger("other").warning("%s is %s", "disk", "full", extra={"disk": "sda"})
        """
    )
    assert [(line["event"], line["level"], line["disk"]) for line in lines] == [("disk is full", "warning", "sda")]


def test_an_exception_is_one_line_with_its_traceback() -> None:
    [line] = logged(
        """
        configure("info", "json")
        try:
            raise ValueError("no such thing")
        except ValueError as error:
            get_logger("collector.part").error("part.failed", exc_info=error)
        """
    )
    assert line["event"] == "part.failed"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: no such thing")


def test_a_field_of_any_type_is_written_and_no_text_breaks_a_line() -> None:
    [line] = logged(
        r"""
        from collector.config.kinds import Address, Secret
        from pathlib import Path
        configure("info", "json")
        fields = dict(path=Path("/q"), error=OSError("bad"), held=Secret("hunter2"), text="a\nb\r\u2028\x00")
        get_logger("collector.part").info("part.happened", address=Address("a", 1), **fields)
        """
    )
    assert (line["path"], line["error"], line["held"], line["text"]) == ("/q", "bad", "Secret(***)", "a\nb\r\u2028\x00")
    assert line["address"] == ["a", 1]


def test_setting_up_again_replaces_what_was_set_up() -> None:
    lines = logged(
        """
        logging.basicConfig(level="DEBUG")
        configure("debug", "json")
        configure("info", "json")
        get_logger("collector.part").info("part.happened")
        get_logger("collector.part").debug("part.thought")
        """
    )
    assert [line["event"] for line in lines] == ["part.happened"]


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("auto", True), ("console", False)])
def test_without_a_terminal_the_format_is_json_unless_it_was_asked_to_be_readable(
    log_format: str, is_json: bool
) -> None:
    ended = child(
        f"""
        configure("info", {log_format!r})
        get_logger("collector.part").info("part.happened", app="a", token="hunter2")
        """
    )
    [line] = ended.stderr.splitlines()
    assert "part.happened" in line
    assert "hunter2" not in line
    assert line.startswith("{") == is_json


# -- addresses and floods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("400: no such user person@example.com", "400: no such user ***"),
        ('{"email":"a.b+c@mail.example.com","x":1}', '{"email":"***","x":1}'),
        ("<person@example.com>, (x@y)", "<***>, (***)"),
        ("sent with Bearer abc.def", "sent with Bearer ***"),
        ("nothing @ all", "nothing @ all"),
    ],
)
def test_no_text_keeps_a_persons_address_or_a_token(value: str, kept: str) -> None:
    assert redact(None, "info", {"error": value}) == {"error": kept}
    assert redact(None, "info", {"held_apps": {"wiki": value}}) == {"held_apps": {"wiki": kept}}
    assert redact(None, "info", {"problems": [value, {"of": [value]}]}) == {"problems": [kept, {"of": [kept]}]}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_traceback_keeps_a_persons_address_or_shows_what_a_variable_holds(log_format: str) -> None:
    ended = child(
        f"""
        configure("info", {log_format!r})
        def sign_in(client_secret):
            raise ValueError("no such user person@example.com")
        try:
            sign_in("hunter" + "2")
        except ValueError:
            get_logger("collector.part").exception("part.failed")
        """
    )
    assert "ValueError: no such user ***" in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "\x1b" not in ended.stderr  # colours are for terminals


def passed(sampler: Sampler, level: int = logging.WARNING, **fields: object) -> bool:
    record = logging.makeLogRecord({"msg": "part.failed", "levelno": level, **fields})
    return bool(sampler.filter(record))


def test_of_a_flood_some_lines_a_second_are_heard_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.5]
    sampler = Sampler(lines_a_second=3, now=lambda: now[0])
    with caplog.at_level(logging.INFO, "collector"):
        assert [passed(sampler, app="wiki") for _ in range(10)] == [True] * 3 + [False] * 7
        assert passed(sampler, app="crm"), "one app's flood hides no other's line"
        assert passed(sampler, source="udp")
        assert caplog.records == []
        now[0] = 1.5
        sampler.say_left_out()
        sampler.say_left_out()
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "logs.left_out")
    assert {name: vars(record).get(name) for name in ("of", "app", "lines")} == {
        "of": "part.failed",
        "app": "wiki",
        "lines": 7,
    }
    assert passed(sampler, app="wiki"), "the next second begins anew"


def test_a_flood_that_goes_on_is_counted_each_second(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    sampler = Sampler(lines_a_second=1, now=lambda: now[0])
    with caplog.at_level(logging.INFO, "collector"):
        for second in range(4):
            now[0] = float(second)
            for _ in range(5):
                passed(sampler)
    assert [vars(record)["lines"] for record in caplog.records] == [4, 4, 4]


def test_who_asks_for_debugging_gets_all_of_it() -> None:
    sampler = Sampler(lines_a_second=1, now=lambda: 0.0)
    assert all(passed(sampler, logging.DEBUG) for _ in range(100))


def test_the_command_lines_logs_are_sampled() -> None:
    lines = logged(
        """
        from collector.observe import logs
        configure("info", "json")
        seconds = iter([1.0] * 51 + [2.0] * 9)
        logging.getLogger().handlers[0].filters[0]._now = lambda: next(seconds)
        for number in range(50):
            get_logger("collector.part").warning("part.failed", app="wiki", error="person@example.com")
        next(seconds)
        logs.say_left_out()
        """
    )
    assert [line["event"] for line in lines] == ["part.failed"] * 10 + ["logs.left_out"]
    assert (lines[-1]["of"], lines[-1]["lines"], lines[-1]["app"]) == ("part.failed", 40, "wiki")


def test_a_host_programs_records_are_not_sampled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "collector"):
        for _ in range(50):
            get_logger("collector.part").warning("part.failed")
    assert len(caplog.records) == 50


# -- the journal -------------------------------------------------------------------------------------------------------


def test_the_journal_gets_a_priority_and_no_time_of_ours() -> None:
    ended = child(
        """
        import os, sys
        stat = os.fstat(2)
        os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
        configure("info", "json")
        for level in ("info", "warning", "error"):
            getattr(get_logger("collector.part"), level)("part.happened")
        """
    )
    lines = [line[:3] for line in ended.stderr.splitlines()]
    assert lines == ["<6>", "<4>", "<3>"]
    assert json.loads(ended.stderr.splitlines()[0][3:]) == {"event": "part.happened", "level": "info"}


@pytest.mark.parametrize("stream", ["", "rubbish", "1:2"])
def test_what_does_not_go_to_the_journal_is_not_taken_for_it(stream: str) -> None:
    assert not is_journal(2, stream)
    assert not is_journal(-1, stream)
