"""A queue file that may not grow (SQLite's max_page_count): events are refused with 507, delivered, and taken again."""

from pathlib import Path

from collector.sandbox.faults import Fault
from tests.e2e.oracle import new_seed, oracle_in
from tests.e2e.rigged import Rig

SPARE_PAGES = 200


async def test_a_file_that_may_not_grow_refuses_events_until_delivery_has_freed_pages(tmp_path: Path) -> None:
    async with oracle_in(tmp_path, new_seed()) as oracle:
        oracle.upstream_has(Fault(status=503))
        async with oracle.running(Rig(spare_pages=SPARE_PAGES)) as daemon:
            async with oracle.load(daemon, may_be_refused=True):
                assert "no room on the disk" in await daemon.until_readiness_is(503)
            assert oracle.books.refused.keys() == {507}
            accepted = oracle.books.accepted
            oracle.upstream_has()
            await oracle.drained(daemon)
            await daemon.until_readiness_is(200)
            async with oracle.load(daemon, may_be_refused=True):
                await oracle.until_acknowledged(100)
            assert oracle.books.accepted > accepted
            await oracle.drained(daemon)
            assert await daemon.stop() == 0
        await oracle.close_books()
