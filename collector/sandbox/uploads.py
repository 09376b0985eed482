"""Files that apps upload: signed URLs that expire, and what was PUT to them.

A URL says in its query what it is for, signed; nothing has to be remembered between the two requests. Files lie under
their SHA-256: in the data directory, or in memory, where there is an end to it.
"""

import asyncio
import hashlib
from pathlib import Path

import msgspec

from collector.clock import Clock
from collector.contract.models import UploadUrl
from collector.sandbox.calls import Refusal
from collector.sandbox.grants import Signer
from collector.sandbox.records import Upload

PATH = "/uploads"
OPERATION = "upload"
"""What a fault calls the PUT: no operation of the contract, which only says where to."""
LIFETIME_SECONDS = 900
MAX_MEMORY_BYTES = 64 * 2**20


class Permit(msgspec.Struct, frozen=True, tag=True):
    """What an upload URL allows, until the clock's `monotonic` reaches `expires_at`."""

    app_id: str
    filename: str
    expires_at: float


class Uploads:
    """The files of one sandbox. In `directory`, made when the first one comes; in memory without."""

    def __init__(self, directory: Path | None, clock: Clock, signer: Signer) -> None:
        self._directory = directory
        self._clock = clock
        self._signer = signer
        self._contents: dict[str, bytes] = {}
        self._writing = asyncio.Lock()  # two of one content, sent again perhaps, would write one unfinished file

    def url(self, base_url: str, app_id: str, filename: str) -> UploadUrl:
        """Where the app may put this file within the next `LIFETIME_SECONDS`."""
        permit = Permit(app_id, filename, self._clock.monotonic() + LIFETIME_SECONDS)
        return UploadUrl(filename, f"{base_url}{PATH}?signed={self._signer.sign(permit)}")

    def permit(self, signed: str) -> Permit:
        """What a URL allows. Raises Refusal with 403: the client asks for another URL then."""
        permit = self._signer.read(signed, Permit)
        if permit is None:
            raise Refusal(403, "wrong_signature", "the URL was not signed by this sandbox")
        if self._clock.monotonic() >= permit.expires_at:
            raise Refusal(403, "url_expired", f"the URL was good for {LIFETIME_SECONDS} seconds; ask for a new one")
        return permit

    async def keep(self, permit: Permit, content: bytes) -> Upload:
        """The file can be read. Raises Refusal with 413 where memory has no room for it."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self._directory is not None:
            async with self._writing:
                await asyncio.to_thread(_write, self._directory / sha256, content)
        elif sum(map(len, (self._contents | {sha256: content}).values())) > MAX_MEMORY_BYTES:
            raise Refusal(
                413, "too_large", f"all uploads together may have {MAX_MEMORY_BYTES} bytes in memory; more with --data"
            )
        else:
            self._contents[sha256] = content
        return Upload(permit.app_id, permit.filename, len(content), sha256)

    async def content(self, upload: Upload) -> bytes:
        """The file as it came."""
        if self._directory is None:
            return self._contents[upload.sha256]
        return await asyncio.to_thread((self._directory / upload.sha256).read_bytes)

    def forget(self) -> None:
        """No file is there."""
        self._contents.clear()
        for file in self._directory.iterdir() if self._directory is not None and self._directory.exists() else ():
            file.unlink()


def _write(place: Path, content: bytes) -> None:
    """Whole or not at all, whenever the process dies."""
    place.parent.mkdir(exist_ok=True)
    part = place.with_suffix(".part")
    part.write_bytes(content)
    part.replace(place)
