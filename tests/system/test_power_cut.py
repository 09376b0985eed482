"""The power goes: what was not synced is gone, what was acknowledged is not, also where syncs had failed before."""

import errno
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.crashes import has_recent_keys
from tests.e2e.oracle import new_seed, oracle_in
from tests.e2e.rigged import BUSTLE, Rig
from tests.patience import until
from tests.system.conftest import program
from tests.system.disk import FailingDisk, small_disk

CUTS = 3
SIZE_MIB = 160


@pytest.mark.parametrize("late", [False, True], ids=["in order", "in disorder"])
@pytest.mark.parametrize("syncs_fail", [False, True], ids=["in good health", "while syncs fail"])
async def test_what_was_acknowledged_survives_power_cuts(tmp_path: Path, *, syncs_fail: bool, late: bool) -> None:
    rig = Rig(constants=BUSTLE) if late else None
    with small_disk(tmp_path, "ext4", SIZE_MIB) as disk:
        async with oracle_in(disk.folder, new_seed()) as oracle:
            failing = FailingDisk(tmp_path, oracle.queue, program("cc"))
            for _ in range(CUTS):
                async with oracle.running(rig, failing.variables) as daemon, oracle.load(daemon, may_be_refused=True):
                    await oracle.until_acknowledged(2_000)
                    if late:
                        await until(partial(has_recent_keys, oracle))
                    if syncs_fail:
                        failing.fail("sync", errno.EIO)
                        await daemon.until_readiness_is(503)
                        failing.heal()
                        await oracle.until_acknowledged(500)
                        failing.fail("sync", errno.EIO)
                        await daemon.until_readiness_is(503)
                    await daemon.freeze()  # as a real power cut does to all
                    disk.stop_writing()
                    await daemon.kill()
                failing.heal()
                disk.restart()
            await oracle.close_books()
