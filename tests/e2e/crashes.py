"""Rounds of load, each of which ends with the daemon's sudden death; then the books.

Half of the deaths are `kill -9` at a random instant; at the others the daemon kills itself at the beginning or the end
of a named step (see `rigged.py`), in turn, so that as many rounds as there are steps and ends of them visit all. What
is new in the collector's way of an event is found by itself: a first life counts how often each step is taken.
"""

import asyncio
import contextlib
import itertools
import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import aiohttp
import msgspec

from collector.queue.sqlite import database
from collector.sandbox.faults import Fault
from tests.e2e.daemon import Daemon, NotStartedError
from tests.e2e.oracle import TROUBLES, Oracle, oracle_in
from tests.e2e.rigged import BUSTLE, Rig, steps
from tests.patience import until
from tests.queue.samples import opened

LIFE_SECONDS = 0.5
"""How long a rigged daemon is under load before it is asked to stop, if it has not died by then."""
LIVES_SECONDS = tuple(LIFE_SECONDS * 2**times for times in range(7))
"""So often a life is lived that was to visit a step and did not, each twice as long as the one before: what is rare, or
done by a clock, may not come up in a short life on a busy machine."""
FULL_SPARE_PAGES = 150
"""Little enough to be used up in a part of that life, and enough for the trial that finds room again."""
LONG_AGO_SECONDS = -40 * 86_400.0

KEPT = "100ms"
"""How long delivered events are kept: so that they are, and are deleted, in one short life."""

SHOWN = "of the status page, which writes nothing"
AT_RELOAD = "of a reload, and writes nothing; see tests/test_reload.py"
BY_HAND = "of `collector queue dead`, `export` and `replay`; see tests/queue/test_by_hand.py"
OF_MANY_REFUSALS = "of many refusals in a row; see tests/test_flusher.py"
NOT_TAKEN = {
    "database.damaged": "of a damaged file; see tests/queue/test_salvage.py",
    "database.foreign": "of another program's file; see tests/queue/test_database.py",
    "database.missing": "of commands; see tests/queue/test_database.py",
    "database.newer": "of a file of a newer version; see tests/queue/test_database.py",
    "database._named_statements": "at import",
    "database._sql": "at import",
    "flusher.Flusher.try_held": AT_RELOAD,
    "flusher.Flusher.use_pace": AT_RELOAD,
    "flusher.Flusher.use_publisher": AT_RELOAD,
    "flusher.Flusher._takes_another": OF_MANY_REFUSALS,
    "parcel.Parcel.nothing_but_refusals": OF_MANY_REFUSALS,
    "sql.count_kept": BY_HAND,
    "sql.count_letters": BY_HAND,
    "sql.drop_delivered": BY_HAND,
    "sql.drop_letter": BY_HAND,
    "sql.kept_after": BY_HAND,
    "sql.letters": BY_HAND,
    "sql.newest_kept": BY_HAND,
    "sql.newest_letter": BY_HAND,
    "sql.waiting_after": BY_HAND,
    "sql.dead_reasons": SHOWN,
    "sql.latest_dead": SHOWN,
    "queue.SqliteQueue.dead_letters": SHOWN,
    "queue.SqliteQueue.fleet_share": "of a limit on requests, and writes nothing; see tests/test_pace.py",
    "queue.SqliteQueue.round_trip": "of a supervisor's watchdog, and writes nothing; see tests/test_systemd.py",
    "queue.SqliteQueue.use_limits": AT_RELOAD,
    "queue._nothing": "as round_trip",
    "reserve.with_reserve": "at import",
    "store.Store.let_settle": "of who gives up delivery and stays; see tests/queue/test_store.py",
    "store.Store.reconnect": "after a fork of the program around it; see tests/test_sync.py",
    "store_process._close_all_but": "as _live",
    "store_process._die_with": "as _live",
    "store_process._live": "a process's life, counted from when it serves",
    "writer.unheard": "as let_settle",
}
"""Steps that a daemon does not take, and why. What is new and neither taken nor named here fails every run, and so does
what is named here and taken."""


class Death(msgspec.Struct, frozen=True):
    """A step that a daemon takes, how often it does, and what it takes to get there."""

    step: str
    at_end: bool
    times: int
    needs_new_file: bool
    needs_full_disk: bool
    needs_a_death: bool
    """It is taken where another daemon has died amid its work."""

    @property
    def latest(self) -> int:
        """The most often that the step is sure enough to be taken in one life."""
        return max(1, min(30, self.times // 4))


class Figures(msgspec.Struct):
    """What was done, and what came of it."""

    rounds: int = 0
    kills: int = 0
    steps: Counter[str] = msgspec.field(default_factory=Counter)
    acknowledged: int = 0
    delivered: int = 0
    buried: int = 0
    lost: int = 0
    doubled: int = 0
    sent_again: int = 0
    """Events that upstream got more than once."""
    missed: list[str] = []
    """Deaths that did not take place."""

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.kills} kills, {sum(self.steps.values())} of them at {len(self.steps)} named "
            f"steps; {self.acknowledged} events acknowledged, {self.delivered} delivered, {self.buried} buried, "
            f"{self.lost} lost, {self.doubled} doubled ({self.sent_again} were sent upstream again)"
        )


async def trouble(oracle: Oracle, daemon: Daemon, rig: Rig, seconds: float) -> None:
    """For one life upstream has all troubles; first with small requests of which some fail: parts of leases.

    A disk that gets full is met, and has room again. Raises TimeoutError where it does not come to that.
    """
    oracle.upstream_has(
        Fault(status=403, times=1),
        Fault(status=413, more_than=8),
        Fault(status=503, email="person7@example.com", times=40),
    )
    await asyncio.sleep(seconds / 2)
    oracle.upstream_has(*TROUBLES)
    await asyncio.sleep(seconds / 2)
    if rig.spare_pages is not None:
        await daemon.logs("queue.available_again")


async def life(oracle: Oracle, rig: Rig, seconds: float) -> Counter[str]:
    """How often a daemon that ends well takes each step."""
    census = oracle.folder / "census"
    async with oracle.running(msgspec.structs.replace(rig, census=str(census)), queue__keep_delivered=KEPT) as daemon:
        async with oracle.load(daemon, may_be_refused=rig.spare_pages is not None):
            await trouble(oracle, daemon, rig, seconds)
            await daemon.metrics()
        oracle.upstream_has()
        await oracle.drained(daemon)
        assert await daemon.stop() == 0, daemon.output
    return Counter(msgspec.json.decode(census.read_bytes(), type=dict[str, int]))


async def lives(oracle: Oracle) -> list[Death]:
    """Every death there is, found in lives that end well: with a new file, an old one, a full disk, and after a death.

    What the first one has received is so old that the later ones forget it. Raises AssertionError where a step is
    neither taken nor named in NOT_TAKEN, or both.
    """
    new = await life(oracle, Rig(clock_shift_seconds=LONG_AGO_SECONDS), LIFE_SECONDS)
    oracle.forget()
    old, full, after, unknown = Counter[str](), Counter[str](), Counter[str](), set(steps())
    for seconds in LIVES_SECONDS:
        old += await life(oracle, Rig(constants=BUSTLE), seconds)
        full += await life(oracle, Rig(constants=BUSTLE, spare_pages=FULL_SPARE_PAGES), seconds)
        await crash_amid_disorder(oracle)
        after += await life(oracle, Rig(constants=BUSTLE), seconds)
        unknown = set(steps()) - {*new, *old, *full, *after, *NOT_TAKEN}
        if not unknown:
            break
    assert not unknown, f"no daemon here takes {unknown}: reach it, or say in NOT_TAKEN why not"
    wrong = {*new, *old, *full, *after} & set(NOT_TAKEN)
    assert not wrong, f"a daemon takes {wrong}, which NOT_TAKEN denies"
    return [
        Death(
            step,
            at_end,
            times=old[step] or new[step] or full[step] or after[step],
            needs_new_file=not (old + full + after)[step],
            needs_full_disk=not (old + new + after)[step],
            needs_a_death=not (old + new)[step] and after[step] > 0,
        )
        for step in steps()
        if (old + new + full + after)[step]
        for at_end in (False, True)
    ]


def has_recent_keys(oracle: Oracle) -> bool:
    """Whether some keys have not entered the tree."""
    with opened(oracle.queue) as connection:
        return connection.execute(database.SQL["has_recent"]).fetchone() is not None


async def crash_amid_disorder(oracle: Oracle) -> None:
    """One daemon dies while some keys have not entered the tree."""
    async with oracle.running(Rig(constants=BUSTLE)) as daemon, oracle.load(daemon):
        await until(partial(has_recent_keys, oracle))
        await daemon.kill()


async def crash_at_random(oracle: Oracle) -> None:
    """One daemon dies at a random instant under load."""
    async with oracle.running() as daemon, oracle.load(daemon):
        # A random instant is what this is about; nothing else is waited for by the clock.
        await asyncio.sleep(oracle.rng.uniform(0.01, 0.4))
        await daemon.kill()


async def crash_at(oracle: Oracle, death: Death) -> bool:
    """Whether a daemon died this death, in one of its lives."""
    for seconds in LIVES_SECONDS:
        if death.needs_a_death:
            await crash_amid_disorder(oracle)
        nth = oracle.rng.randint(1, death.latest) if seconds == LIFE_SECONDS else 1
        if await crash_one_at(oracle, death, nth=nth, seconds=seconds):
            return True
    return False


async def crash_one_at(oracle: Oracle, death: Death, *, nth: int, seconds: float) -> bool:
    rig = Rig(
        step=death.step,
        at_end=death.at_end,
        nth=nth,
        constants=BUSTLE,
        spare_pages=FULL_SPARE_PAGES if death.needs_full_disk else None,
    )
    try:
        async with (
            oracle.running(rig, queue__keep_delivered=KEPT) as daemon,
            oracle.load(daemon, may_be_refused=death.needs_full_disk),
        ):
            dead = asyncio.create_task(daemon.ended())
            all_else = asyncio.create_task(trouble(oracle, daemon, rig, seconds))
            await asyncio.wait({dead, all_else}, return_when=asyncio.FIRST_COMPLETED)
            all_else.cancel()
            if daemon.is_running:
                with contextlib.suppress(aiohttp.ClientError):
                    await daemon.metrics()
                daemon.send(signal.SIGTERM)
            return await dead == -signal.SIGKILL
    except NotStartedError as error:
        return error.status == -signal.SIGKILL


async def crash_with_new_file(oracle: Oracle, death: Death, name: str) -> bool:
    """The same where a daemon makes its file; then another goes on with what is left of that."""
    async with oracle_in(oracle.folder / name, oracle.rng.randrange(2**32)) as other:
        has_died = await crash_at(other, death)
        async with other.running() as daemon, other.load(daemon):
            await other.until_acknowledged(100)
        await other.close_books()
    return has_died


async def crashes(folder: Path, *, seed: int, rounds: int, figures: Figures, first: int = 0) -> None:
    """So many rounds, and even books. Raises AssertionError where they are not; what was found is in `figures`.

    `first` is the place in the list of deaths where to begin.
    """
    async with oracle_in(folder, seed) as oracle:
        deaths = await lives(oracle)
        random.Random(0).shuffle(deaths)  # neighbours on the list are alike; the order is the same in every run
        turn = itertools.islice(itertools.cycle(deaths), first % len(deaths), None)
        for number in range(rounds):
            oracle.upstream_has(*oracle.rng.sample(TROUBLES, 2))
            figures.rounds += 1
            if number % 2 == 0:
                await crash_at_random(oracle)
                figures.kills += 1
                continue
            death = next(turn)
            has_died = await (
                crash_with_new_file(oracle, death, f"new-{number}") if death.needs_new_file else crash_at(oracle, death)
            )
            if has_died:
                figures.kills += 1
                figures.steps[death.step] += 1
            else:
                figures.missed.append(f"{death.step}{' at its end' if death.at_end else ''}")
        balance = await oracle.last_balance()
        figures.acknowledged += balance.acknowledged
        figures.delivered += balance.delivered
        figures.buried += balance.buried
        figures.lost += len(balance.lost)
        figures.doubled += balance.doubled
        figures.sent_again += await oracle.sent_again()
        balance.assert_even()
