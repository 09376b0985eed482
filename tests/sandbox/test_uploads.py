"""Upload URLs are signed and expire; what is PUT to them is kept as it came."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from collector.contract.operations import GET_AUDIT_EVENTS, GET_BATCH_UPLOAD_URLS
from collector.sandbox import uploads
from collector.sandbox.faults import Fault
from collector.sandbox.grants import Signer
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from collector.sandbox.uploads import LIFETIME_SECONDS, Permit, Uploads
from tests.fake_clock import FakeClock
from tests.sandbox.client import APP, Answer, Client, opened, serving

CONTENT = b"email,role\r\n\x00\xffperson@example.com,admin\r\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROW = {"appId": APP, "filename": "users.csv", "bytes": len(CONTENT), "sha256": SHA256}


class Uploader(Client):
    async def url(self, filename: str = "users.csv") -> str:
        answer = await self.call(GET_BATCH_UPLOAD_URLS, appId=APP, filenames=filename)
        url: str = answer.json["uploadUrls"][0]["uploadUrl"]
        return url.removeprefix(self._url)

    async def put(self, url: str, content: bytes = CONTENT) -> Answer:
        """Without the token: the URL is all the authority that is needed."""
        return await self.request("PUT", url, data=content)

    async def listed(self) -> object:
        return (await self.request("GET", "/_sandbox/uploads")).json["uploads"]


@pytest.fixture(params=["memory", "disk"])
async def state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[State]:
    async with opened(tmp_path if request.param == "disk" else None) as state:
        await state.add_app(APP, APP)
        yield state


@pytest.fixture
async def sandbox(state: State, clock: FakeClock) -> AsyncIterator[Sandbox]:
    async with serving(Sandbox(state, clock=clock)) as sandbox:
        yield sandbox


@pytest.fixture
async def uploader(session: aiohttp.ClientSession, sandbox: Sandbox) -> Uploader:
    uploader = Uploader(session, sandbox)
    await uploader.authorize()
    return uploader


async def test_a_file_can_be_put_where_its_url_says_and_had_back(uploader: Uploader, sandbox: Sandbox) -> None:
    answer = await uploader.put(await uploader.url())
    assert (answer.status, answer.json) == (200, {"success": True})
    assert await uploader.listed() == [ROW]
    assert (await uploader.request("GET", f"/_sandbox/uploads/{SHA256}")).body == CONTENT
    assert (await uploader.request("GET", f"/_sandbox/uploads/{'0' * 64}")).status == 404
    [event] = (await uploader.call(GET_AUDIT_EVENTS)).json["events"]
    assert event["eventType"] == "file.uploaded"
    assert event["details"] == {"appId": APP, "filename": "users.csv", "bytes": len(CONTENT)}
    assert (await sandbox.stats()).unexpected == 0


async def test_each_file_name_gets_a_url_of_its_own_in_the_order_asked_for(uploader: Uploader) -> None:
    names = ["b.csv", "a.csv", "../../x", "ä ?&=", ""]
    answer = await uploader.call(GET_BATCH_UPLOAD_URLS, appId=APP, filenames=names)
    urls = answer.json["uploadUrls"]
    assert [url["filename"] for url in urls] == names
    assert len({url["uploadUrl"] for url in urls}) == len(names)
    for url in urls:
        assert (await uploader.put(await uploader.url(url["filename"]))).status == 200
    assert sorted(row["filename"] for row in await uploader.listed()) == sorted(names)  # type: ignore[attr-defined]
    assert (await uploader.call(GET_BATCH_UPLOAD_URLS, appId=APP)).status == 400


async def test_a_file_that_is_put_again_takes_the_place_of_the_first(uploader: Uploader) -> None:
    url = await uploader.url()
    for content in (b"first", b"", CONTENT):
        assert (await uploader.put(url, content)).status == 200
    assert await uploader.listed() == [ROW]


@pytest.mark.parametrize("url", ["/uploads", "/uploads?signed=", "/uploads?signed=x", "{url}x", "{url}%20"])
async def test_a_url_that_was_not_signed_here_is_refused_with_403(uploader: Uploader, url: str) -> None:
    answer = await uploader.put(url.format(url=await uploader.url()))
    assert (answer.status, answer.json["error"]) == (403, "wrong_signature")
    assert await uploader.listed() == []


async def test_a_url_expires_and_a_new_one_is_good(uploader: Uploader, clock: FakeClock) -> None:
    url = await uploader.url()
    clock.advance(LIFETIME_SECONDS - 0.1)
    assert (await uploader.put(url)).status == 200
    clock.advance(0.1)
    answer = await uploader.put(url)
    assert (answer.status, answer.json["error"]) == (403, "url_expired")
    assert (await uploader.put(await uploader.url())).status == 200


async def test_a_fault_hits_an_upload_by_its_name_and_app(uploader: Uploader, sandbox: Sandbox) -> None:
    sandbox.set_faults(
        Fault(operation="upload", app_id="other", status=599),
        Fault(operation="upload", app_id=APP, status=503, times=1),
        Fault(operation="upload", cut=True, after=True),  # each time: the HTTP client itself tries a PUT twice
    )
    url = await uploader.url()
    assert (await uploader.put(url)).status == 503
    assert await uploader.listed() == []
    with pytest.raises(aiohttp.ClientConnectionError):
        await uploader.put(url)
    assert await uploader.listed() == [ROW]
    sandbox.set_faults()
    assert (await uploader.put(url)).status == 200


async def test_a_reset_forgets_the_files(uploader: Uploader, state: State) -> None:
    await uploader.put(await uploader.url())
    await uploader.request("POST", "/_sandbox/reset")
    assert await uploader.listed() == []
    assert not state.directory or list((state.directory / "uploads").iterdir()) == []


async def test_memory_has_an_end_and_disk_has_room(
    uploader: Uploader, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_MEMORY_BYTES", 100)
    for _ in range(2):
        assert (await uploader.put(await uploader.url("a"), b"a" * 60)).status == 200
    answer = await uploader.put(await uploader.url("b"), b"b" * 60)
    assert answer.status == (413 if state.directory is None else 200)


async def test_files_survive_in_their_directory(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    for life in range(2):
        async with opened(tmp_path) as state, serving(Sandbox(state, create_apps=True)) as sandbox:
            uploader = Uploader(session, sandbox)
            await uploader.authorize()
            if life == 0:
                await uploader.put(await uploader.url())
            assert await uploader.listed() == [ROW]
            assert (await uploader.request("GET", f"/_sandbox/uploads/{SHA256}")).body == CONTENT


async def test_one_file_is_written_at_a_time(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are the same, sent again perhaps, one would take the other's unfinished file to its place."""
    writing, most = 0, 0

    async def counted(write: Callable[..., None], *arguments: object) -> None:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        await asyncio.sleep(0)
        write(*arguments)
        writing -= 1

    monkeypatch.setattr(asyncio, "to_thread", counted)
    files = Uploads(tmp_path / "uploads", clock, Signer())
    kept = await asyncio.gather(*(files.keep(Permit("wiki", name, 0.0), b"the same") for name in ("a.csv", "b.csv")))
    assert most == 1
    assert [path.read_bytes() for path in (tmp_path / "uploads").iterdir()] == [b"the same"]
    assert len({upload.sha256 for upload in kept}) == 1
