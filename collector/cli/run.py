"""`collector run`: the daemon."""

import asyncio
import signal
import sys
from pathlib import Path

import click

from collector.agent import Collector, Delivery
from collector.cli.loop import run, stop_signals
from collector.cli.options import config_option
from collector.config import Config, load
from collector.errors import ConfigInvalid
from collector.observe.logs import configure, get_logger

log = get_logger(__name__)

LEVELS = ("debug", "info", "warning", "error")

SWITCH_INTERVAL_SECONDS = 0.00005
"""How long a thread may keep the interpreter from the others. The default of 5 ms is what each of a commit's few hops
between Python and SQLite would cost the writer's thread under load. The process is ours alone, so this may be set."""


@click.command("run", short_help="Run the collector.")
@config_option
@click.option("--log-level", type=click.Choice(LEVELS), help="Least severe level that is logged; wins over log.level.")
def command(config_file: Path | None, log_level: str | None) -> None:
    """Run the collector until SIGTERM or SIGINT.

    The first signal stops accepting, delivers until stop.deadline, and says what remains in the queue. A second one
    ends the process at once; nothing acknowledged is lost by that. SIGHUP reads the tokens' file again.
    """
    config = load(config_file)
    configure(log_level or config.log.level, config.log.format)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    run(_serve(config, str(config_file or "defaults")))


async def _serve(config: Config, config_source: str) -> None:
    stop_asked = asyncio.create_task(stop_signals().wait())
    collector = Collector(
        config,
        listens=True,
        delivery=Delivery.EXCLUSIVE,
        config_source=f"{config_source} and the environment",
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, collector)
    async with collector:
        failed = asyncio.create_task(collector.failed())
        await asyncio.wait([stop_asked, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            await failed
        failed.cancel()


def _reload(collector: Collector) -> None:
    try:
        collector.reload()
    except ConfigInvalid as error:
        log.error("run.reload_failed", error=str(error), remedy="the tokens of before stay in force")  # noqa: TRY400
