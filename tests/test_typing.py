"""The package's types, as a program sees them that is checked strictly against it."""

import subprocess
import sys
from pathlib import Path

import collector
from tests.patience import PATIENCE_SECONDS

CALLER = '''
"""Whatever is ignored here must be an error: an ignore that is not needed is one in strict mode."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, assert_type

from collector import Collector, SyncCollector
from collector.client import Client, Counters
from collector.integrations import asgi, decorator, logs, wsgi


def usage_of_request(scope: asgi.Scope, status: int) -> tuple[str, str] | None:
    return None


class Django:
    """As its own types have it."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[Mapping[str, Any]], Awaitable[None]],
    ) -> None: ...


def use(client: Client, sync: SyncCollector, embedded: Collector, app: asgi.App) -> None:
    assert_type(client.record(email="user@example.com", event_name="saved"), bool)
    assert_type(client.record(email="user@example.com", event_name="saved", timestamp_ms=1, app_id="wiki"), bool)
    assert_type(client.counters, Counters)
    assert_type(client.flush(1), bool)
    client.record("user@example.com", "saved")  # type: ignore[call-arg]
    client.record(email=b"user@example.com", event_name="saved")  # type: ignore[arg-type]
    for recorder in (client, sync, embedded):
        asgi.UsageMiddleware(app, recorder=recorder, usage=usage_of_request)
        logs.UsageHandler(recorder, usage=lambda record: (record.name, "logged"))
    asgi.UsageMiddleware(Django(), recorder=client, usage=usage_of_request)
    asgi.UsageMiddleware(app, recorder=logging.getLogger(), usage=usage_of_request)  # type: ignore[arg-type]
    wsgi.UsageMiddleware(lambda _, start: [], recorder=client, usage=lambda environ, status: None)
    wsgi.UsageMiddleware(lambda _, start: [], recorder=client, usage=lambda _: None)  # type: ignore[misc, arg-type]

    @decorator.records_usage(client, lambda user: (user, "exported"))
    def export(user: str) -> int:
        return len(user)

    assert_type(export("user@example.com"), int)
    export(7)  # type: ignore[arg-type]

    @decorator.records_usage(client, lambda user: 7)  # type: ignore[arg-type, return-value]
    def unused(user: str) -> None: ...

    still: Callable[[str], int] = export
'''


def test_a_program_that_uses_the_package_is_checked_strictly(tmp_path: Path) -> None:
    program = tmp_path / "caller.py"
    program.write_text(CALLER)
    package = Path(collector.__file__).parent
    assert (package / "py.typed").is_file()
    options = ("--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path))
    command = (sys.executable, "-m", "mypy", *options, str(program))
    checked = subprocess.run(
        command, cwd=package.parent, capture_output=True, text=True, timeout=3 * PATIENCE_SECONDS, check=False
    )
    assert checked.stdout.startswith("Success: "), checked.stdout + checked.stderr
