"""`collector run`: the daemon."""

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import click

from collector.agent import Collector
from collector.cli.loop import run, stop_signals
from collector.cli.options import config_option
from collector.cli.role import Role, role_option
from collector.config import Config
from collector.config.model import Log
from collector.election import Delivery
from collector.errors import ConfigInvalid
from collector.observe.logs import configure, get_logger
from collector.queue.sqlite.store_process import StoreProcess
from collector.queue.sqlite.writer import unheard
from collector.systemd import Notifier, take_sockets

log = get_logger(__name__)

LEVELS = ("debug", "info", "warning", "error")

STATUS_SECONDS = 5.0
"""How often systemd is told how it is, or three times within the watchdog's time if that is shorter."""

SWITCH_SECONDS = 0.0005
"""How long a thread waits for the interpreter while another has it. A backlog is read in a thread beside the loop that
waits several times in each read: while posts kept the loop busy, Python's 5 ms cost a tenth of what was delivered."""

STOP_EXTRA_SECONDS = 20.0
"""What a stop may take beside stop.deadline, until systemd ends it."""


class Daemon:
    """One run: the collector in the role that it was asked to play, what it reads again, and what it tells systemd."""

    def __init__(self, config_file: Path | None, role: Role, log_level: str | None) -> None:
        self._config_file = config_file
        self._role = role
        self._log_level = log_level
        self._notifier = Notifier()
        self._is_ready = asyncio.Event()
        self._collector: Collector
        self._use(role.load(config_file))
        self._writer = StoreProcess.fork() if self._config.queue.backend == "sqlite" else None

    def _use(self, config: Config) -> None:
        self._config = config
        _configure(None, log=config.log, level=self._log_level)

    async def serve(self) -> None:
        """Returns after an orderly stop. Raises what keeps the collector from starting or going on."""
        stop_asked = asyncio.create_task(stop_signals().wait())
        self._collector = Collector(
            self._config,
            listens=self._role.listens,
            sockets=take_sockets() if self._role.listens else (),
            delivery=Delivery.EXCLUSIVE if self._role.delivers else Delivery.ELSEWHERE,
            config_source=f"{self._config_file or 'defaults'} and the environment",
            writer=self._writer,
        )
        if self._writer is not None:
            self._collector.metrics.watch_writer(self._writer.pid)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        async with self._reporting(), self._collector:
            self._notifier.ready()
            self._is_ready.set()
            failed = asyncio.create_task(self._collector.failed())
            await asyncio.wait([stop_asked, failed], return_when=asyncio.FIRST_COMPLETED)
            self._is_ready.clear()
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is read again any more
            self._notifier.stopping(within_seconds=self._config.stop.deadline + STOP_EXTRA_SECONDS)
            if failed.done():
                await failed
            failed.cancel()

    def _configure_writer(self) -> None:
        if self._writer is not None:
            unheard(self._writer.run(partial(_configure, log=self._config.log, level=self._log_level)))

    def _reload(self) -> None:
        """Everything is read again. A broken configuration is refused with all its problems."""
        is_ready = self._is_ready.is_set()  # else its manager waits for another READY, or for none
        if is_ready:
            self._notifier.reloading()
        try:
            self._use(self._collector.reload(self._role.load(self._config_file)).config)
            self._configure_writer()
        except ConfigInvalid as error:
            log.error("run.reload_failed", error=str(error), remedy="the configuration of before stays in force")  # noqa: TRY400
        finally:
            if is_ready:
                self._notifier.ready()

    @contextlib.asynccontextmanager
    async def _reporting(self) -> AsyncIterator[None]:
        """From the start to the end of the stop, systemd is told how it is; where it hangs meanwhile, it is killed."""
        if self._notifier.watchdog_seconds is not None:
            faulthandler.enable()  # the journal has where each thread was when the watchdog's SIGABRT came
        reporting = asyncio.create_task(self._report())
        try:
            yield
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])

    async def _report(self) -> None:
        if not self._notifier.is_heard:
            return
        await self._is_ready.wait()
        period = min(STATUS_SECONDS, (self._notifier.watchdog_seconds or STATUS_SECONDS * 3) / 3)
        while True:
            self._notifier.alive(await self._collector.round_trip())
            await asyncio.sleep(period)


def _configure(_store: object, *, log: Log, level: str | None) -> None:
    """A step of the process that writes the queue, too."""
    configure(level or log.level, log.format)


@click.command("run")
@config_option
@role_option
@click.option("--log-level", type=click.Choice(LEVELS), help="Least severe level that is logged; wins over log.level.")
def command(config_file: Path | None, role: Role, log_level: str | None) -> None:
    """Run the collector until SIGTERM or SIGINT.

    The first signal stops accepting, delivers until stop.deadline, and says what remains in the queue. A second one
    ends the process at once; nothing acknowledged is lost by that. SIGHUP reads configuration and tokens again, without
    dropping a connection; the log says what is in force and what needs a restart. A broken configuration is refused.

    Under systemd it says when it is ready, how it is and that it is alive, and takes over the sockets of a .socket unit
    in place of those that are configured.
    """
    if os.getpid() == 1:  # of a container: the kernel itself reaps orphans, such as what an `exec` has left
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    daemon = Daemon(config_file, role, log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    run(daemon.serve())
