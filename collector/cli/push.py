"""`collector push`: events from files into a running collector."""

import asyncio
import gzip
import random
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from collector.backoff import delay_seconds
from collector.cli.loop import run
from collector.cli.options import GZIP_MAGIC, SecondsType, config_option, plain
from collector.cli.reach import first_token, place, reason
from collector.config import load
from collector.config.kinds import is_host
from collector.errors import UNPARSABLE, Retryable, Unusable
from collector.intake import Report
from collector.upstream.transport import why_unconnected
from collector.upstream.wire import retry_after_seconds

LINES_PER_REQUEST = 5000
BYTES_PER_REQUEST = 2**19
ERRORS_SHOWN = 20
BACKOFF_BASE_SECONDS, BACKOFF_MAX_SECONDS = 0.2, 5.0

RETRIED = {408, 425, 429, 500, 502, 503, 504, 507}


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line that holds something, and its number in its file, from 1."""

    number: int
    text: bytes


class Totals(msgspec.Struct):
    """What became of everything that was sent."""

    sent: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


@click.command("push")
@config_option
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--to",
    "url",
    metavar="URL",
    callback=lambda _context, _option, url: url and _checked(url),
    help="The collector: http://HOST:PORT or unix:PATH. Default: where the configuration has it listen.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File whose first token is shown to the collector; without --to, default: access.tokens_file.",
)
@click.option(
    "--patience",
    type=SecondsType(maximum=None),
    default=60.0,
    show_default=True,
    help="Seconds to retry while the collector cannot take a request.",
)
@click.option("--json", "as_json", is_flag=True, help="Totals as one JSON object.")
def command(
    config_file: Path | None,
    files: Sequence[str],
    url: str | None,
    token_file: Path | None,
    patience: float,
    as_json: bool,
) -> None:
    """Send events from FILES to a running collector: one JSON object a line, also gzipped; "-" is standard input.

    Interrupted or failed, simply run it again: what the collector has already is counted as duplicate and not stored
    twice. Exit code 0 if every event was accepted or known, 1 if any was rejected, 75 where no collector takes them.
    """
    token = first_token(token_file)
    if url is None:
        there = place(None, token_file, lambda: load(config_file, with_credentials=False))
        url, token = str(there), there.token
    totals = run(_push_all(files, url.rstrip("/"), token, patience))
    if as_json:
        click.echo(msgspec.json.encode(totals).decode())
    else:
        click.echo(
            f"sent {totals.sent:,}  accepted {totals.accepted:,}  "
            f"duplicates {totals.duplicates:,}  rejected {totals.rejected:,}"
        )
    sys.exit(1 if totals.rejected else 0)


def _checked(url: str) -> str:
    if url.startswith("unix:") and url != "unix:":
        return url
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and is_host(parts.hostname) and parts.port != 0:
            return url
    except ValueError:  # a port that is none
        pass
    raise click.BadParameter(f"{url!r} is not http://HOST:PORT or unix:PATH")


async def _push_all(files: Sequence[str], url: str, token: str | None, patience_seconds: float) -> Totals:
    totals = Totals()
    unix = url.removeprefix("unix:") if url.startswith("unix:") else None
    headers = {"Content-Type": "application/x-ndjson"} | ({"Authorization": f"Bearer {token}"} if token else {})
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[events]:,} events"),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        async with aiohttp.ClientSession(
            "http://localhost" if unix else f"{url}/",
            connector=aiohttp.UnixConnector(unix) if unix else None,
            timeout=aiohttp.ClientTimeout(total=120),
            headers=headers,
        ) as session:
            sender = _Sender(session, url, patience_seconds, totals)
            for file in files:
                with _open(file) as (stream, lines):
                    size = None if file == "-" else Path(file).stat().st_size
                    task = progress.add_task(file, total=size, events=0)
                    for chunk in _chunks(file, lines):
                        await sender.send(file, chunk)
                        _show(progress, task, stream, totals)
    return totals


class _open:  # noqa: N801 - used like the function that it stands for
    """The file as (what is read from, its lines); gzip is told by its first bytes."""

    def __init__(self, file: str) -> None:
        if file == "-" and sys.stdin is None:
            raise Unusable("standard input: it is closed")
        self._is_stdin = file == "-"
        self._stream: Any = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> tuple[Any, Iterable[bytes]]:
        peeked = self._stream.peek(2)[:2]
        return self._stream, gzip.open(self._stream) if peeked == GZIP_MAGIC else self._stream

    def __exit__(self, *_: object) -> None:
        if not self._is_stdin:
            self._stream.close()


def _chunks(file: str, lines: Iterable[bytes]) -> Iterator[list[Line]]:
    """The lines that hold something, in requests of a good size. Raises Unusable after all that can be read."""
    chunk: list[Line] = []
    size = number = 0
    broken: Exception | None = None
    try:
        for number, text in enumerate(lines, 1):
            if stripped := text.strip():
                chunk.append(Line(number, stripped))
                size += len(stripped)
            if len(chunk) >= LINES_PER_REQUEST or size >= BYTES_PER_REQUEST:
                yield chunk
                chunk, size = [], 0
    except (OSError, EOFError, zlib.error) as error:
        broken = error
    if chunk:
        yield chunk
    if broken is not None:
        raise Unusable(f"{file}: it cannot be read after line {number}, up to which all was sent: {broken}") from broken


def _show(progress: Progress, task: TaskID, stream: Any, totals: Totals) -> None:
    try:
        position = stream.tell()
    except OSError:  # a pipe
        position = None
    progress.update(task, completed=position, events=totals.sent)


class _Sender:
    """Posts chunks one after the other, each until it has an answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str, patience_seconds: float, totals: Totals) -> None:
        self._session = session
        self._url = url
        self._patience_seconds = patience_seconds
        self._totals = totals
        self._errors_shown = 0
        self._has_waited = False

    async def send(self, file: str, chunk: Sequence[Line]) -> None:
        """Adds what became of the chunk to the totals, says which lines were rejected. Raises Unusable, Retryable."""
        body = b"\n".join(line.text for line in chunk)
        status, answer = await self._post(body)
        if status == 413 and len(chunk) > 1:
            await self.send(file, chunk[: len(chunk) // 2])
            await self.send(file, chunk[len(chunk) // 2 :])
            return
        try:
            report = msgspec.json.decode(answer, type=Report)
        except UNPARSABLE:
            raise Unusable(f"{self._url} answered {status} and not as a collector does") from None
        if status not in {200, 400} or (status == 400 and not report.rejected):
            reasons = "; ".join(error.reason for error in report.errors)
            said = f": {reasons}" if reasons else " and not as a collector does"
            raise Unusable(f"{self._url} answered {status}{said}")
        self._totals.sent += len(chunk)
        self._totals.accepted += report.accepted
        self._totals.duplicates += report.duplicates
        self._totals.rejected += report.rejected
        for error in report.errors:
            self._errors_shown += 1
            if self._errors_shown <= ERRORS_SHOWN:
                place = "" if error.index is None else f":{chunk[error.index].number}"
                click.echo(f"{file}{place}: {plain(error.reason)}", err=True)
            elif self._errors_shown == ERRORS_SHOWN + 1:
                click.echo("further rejected events are counted, not shown", err=True)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the first answer that is not "later". Raises Retryable when patience is over."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_seconds
        attempt = 0
        while True:
            attempt += 1
            retry_after: float | None = None
            try:
                async with self._session.post("v1/events", data=body) as response:
                    answer = await response.read()
                    if response.status not in RETRIED:
                        return response.status, answer
                    why = f"it answered {response.status}"
                    if told := reason(answer):
                        why += f": {plain(told)}"
                    stated = response.headers.get("Retry-After")
                    retry_after = retry_after_seconds(stated, now_seconds=time.time())
            except aiohttp.ClientConnectorError as error:
                why = f"cannot connect: {why_unconnected(error)}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = str(error) or type(error).__name__
            delay = delay_seconds(
                attempt,
                base_seconds=BACKOFF_BASE_SECONDS,
                maximum_seconds=BACKOFF_MAX_SECONDS,
                random_fraction=random.random(),  # noqa: S311 - jitter
                retry_after_seconds=retry_after,
            )
            if loop.time() + delay > give_up_at:
                raise Retryable(
                    f"{self._url} cannot take events: {why}; {self._totals.sent:,} were sent. "
                    "Run the same command again to go on."
                )
            if not self._has_waited:
                self._has_waited = True
                click.echo(
                    f"{self._url} cannot take events yet: {why}; tried again for {self._patience_seconds:g} s", err=True
                )
            await asyncio.sleep(delay)
