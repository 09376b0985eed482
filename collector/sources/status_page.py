"""The status page and the status document over HTTP."""

from collections.abc import Awaitable, Callable

import msgspec

from collector.observe.page import Page
from collector.observe.status import Status
from collector.sources.http_message import Answer, Request, header_lines

# No other site may frame the page, or have a browser load what it shows.
OURS_ALONE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class StatusPage:
    """Answers for `/` and `/status.json`."""

    def __init__(self, read_status: Callable[[], Awaitable[Status]]) -> None:
        self._read_status = read_status
        self._encode = msgspec.json.Encoder().encode
        page = Page.read()
        self._content = page.content
        self._etag = page.etag
        self._page_headers = header_lines(
            {
                **OURS_ALONE,
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": page.policy,
                "Cache-Control": "no-cache",
                "ETag": page.etag,
            }
        )
        self._document_headers = header_lines(
            {**OURS_ALONE, "Content-Type": "application/json", "Cache-Control": "no-store"}
        )

    def page(self, request: Request) -> Answer:
        """The page, which asks for the document by itself."""
        if self._etag in request.headers.get("if-none-match", ""):
            return Answer(304, b"", self._page_headers)
        return Answer(200, self._content, self._page_headers)

    async def document(self) -> Answer:
        """The document as it is now."""
        return Answer(200, self._encode(await self._read_status()) + b"\n", self._document_headers)
