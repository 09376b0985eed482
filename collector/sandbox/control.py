"""The sandbox's own requests: what it got, what it shall do, its OpenAPI document, and the page for people."""

import functools
import re
from pathlib import Path

import msgspec
from aiohttp import web

from collector.clock import Clock
from collector.observe.page import policy
from collector.sandbox.activity import Activity, AppRow, Picture
from collector.sandbox.calls import Refusal, answer, bad_request
from collector.sandbox.faults import Faults, FaultScript, read_faults
from collector.sandbox.grants import Grants
from collector.sandbox.openapi import document
from collector.sandbox.seed import Seed, plant
from collector.sandbox.state import State, Stats
from collector.sandbox.uploads import Uploads

MAX_APPS_SHOWN = 100
_encode = msgspec.json.Encoder().encode


class SandboxStats(Stats):
    """What `GET /_sandbox/stats` answers: also the tokens issued, and requests that no operation expects."""

    tokens: int = 0
    unexpected: int = 0


class Control:
    """Looks at the parts of one sandbox, and sets them."""

    def __init__(
        self,
        state: State,
        seed: Seed,
        *,
        clock: Clock,
        faults: Faults,
        grants: Grants,
        activity: Activity,
        uploads: Uploads,
    ) -> None:
        self._state = state
        self._seed = seed
        self._clock = clock
        self._faults = faults
        self._grants = grants
        self._activity = activity
        self._uploads = uploads

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Its requests are served."""
        router.add_get("/", _page)
        router.add_get("/openapi.json", _document)
        router.add_get("/_sandbox/stats", self._stats)
        router.add_get("/_sandbox/activity", self._show_activity)
        router.add_get("/_sandbox/events", self._events)
        router.add_get("/_sandbox/org-chart", self._org_chart)
        router.add_get("/_sandbox/uploads", self._list_uploads)
        router.add_get("/_sandbox/uploads/{sha256}", self._upload)
        router.add_get("/_sandbox/faults", self._list_faults)
        router.add_post("/_sandbox/faults", self._set_faults)
        router.add_post("/_sandbox/reset", self._reset)

    async def stats(self) -> SandboxStats:
        """What was received so far."""
        stats = await self._state.stats()
        return SandboxStats(
            stats.requests, stats.received, stats.distinct, stats.apps, self._grants.issued, self._activity.unexpected
        )

    async def _stats(self, _request: web.Request) -> web.StreamResponse:
        return answer(await self.stats())

    async def _show_activity(self, _request: web.Request) -> web.StreamResponse:
        stats = await self._state.stats()
        names = await self._state.names()
        users = await self._state.records.count_users()
        spend = await self._state.records.fiscal_spend()
        rows = [
            AppRow(
                app_id,
                names.get(app_id),
                count.requests,
                count.received,
                count.distinct,
                users.get(app_id, 0),
                spend.get(app_id),
            )
            for app_id, count in stats.apps.items()
        ]
        rows.sort(key=lambda row: row.received, reverse=True)
        return answer(
            Picture(
                now_ms=self._clock.now_ms(),
                apps=rows[:MAX_APPS_SHOWN],
                apps_left_out=max(0, len(rows) - MAX_APPS_SHOWN),
                received=stats.received,
                distinct=stats.distinct,
                minutes=self._activity.minutes(),
                requests=self._activity.requests(),
                tokens=self._grants.issued,
                unexpected=self._activity.unexpected,
                faults=len(self._faults.list()),
            ),
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )

    async def _events(self, _request: web.Request) -> web.StreamResponse:
        lines = [
            _encode({"appId": app_id, "event": msgspec.Raw(event)}) for app_id, event in await self._state.events()
        ]
        return web.Response(body=b"".join(line + b"\n" for line in lines), content_type="application/x-ndjson")

    async def _org_chart(self, _request: web.Request) -> web.StreamResponse:
        return answer(await self._state.records.org_chart())

    async def _list_uploads(self, _request: web.Request) -> web.StreamResponse:
        return answer({"uploads": await self._state.records.uploads()})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        for upload in await self._state.records.uploads():
            if upload.sha256 == request.match_info["sha256"]:
                return web.Response(body=await self._uploads.content(upload), content_type="application/octet-stream")
        raise Refusal(404, "unknown_upload", "no upload has this SHA-256")

    async def _list_faults(self, _request: web.Request) -> web.StreamResponse:
        return answer(FaultScript(list(self._faults.list())))

    async def _set_faults(self, request: web.Request) -> web.StreamResponse:
        try:
            self._faults.set(read_faults(await request.read()))
        except ValueError as error:
            raise bad_request(str(error)) from None
        return await self._list_faults(request)

    async def _reset(self, _request: web.Request) -> web.StreamResponse:
        await self._state.reset()
        await plant(self._state, self._seed)
        self._uploads.forget()
        self._faults.set([])
        self._grants.issued = 0
        self._activity.forget()
        return answer(await self.stats())


async def _document(request: web.Request) -> web.StreamResponse:
    return answer(document(f"{request.scheme}://{request.host}"))


async def _page(_request: web.Request) -> web.StreamResponse:
    html, allowed = _page_and_policy()
    headers = {
        "Content-Security-Policy": allowed,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return web.Response(text=html, content_type="text/html", headers=headers)


@functools.cache
def _page_and_policy() -> tuple[str, str]:
    """The page, the same for everybody: it fetches what it shows. And the policy that lets nothing else be run."""
    html = Path(__file__).with_name("page.html").read_text()
    style, script = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, re.DOTALL)
    return html, policy(style, script)
