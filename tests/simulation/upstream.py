"""A model of upstream, in memory: it keeps what it takes, and fails in every way there is, by script and by chance."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

import msgspec

from collector.contract.models import MAX_EVENTS_PER_REQUEST
from collector.contract.operations import GET_ACCESS_TOKEN
from collector.errors import Retryable, Unanswered
from collector.upstream.transport import Transport
from collector.upstream.wire import MAX_RETRY_AFTER_SECONDS, Request, Response
from tests.simulation.books import Books, Identity
from tests.simulation.loop import Life, VirtualLoop, this_life
from tests.simulation.network import WORLD
from tests.simulation.plan import ANY_SIZE, FAULTS, Plan, Weather


class _Cut(Exception):
    """No answer will come."""


class Upstream:
    """Publisher's other side: a set of keys for each app, and how often each came."""

    def __init__(
        self,
        loop: VirtualLoop,
        fate: random.Random,
        books: Books,
        tell: Callable[..., None],
        violated: Callable[[str], None],
        *,
        wall_seconds: Callable[[], float],
        max_in_flight: int,
        batch_events: int,
        timeout_seconds: float,
    ) -> None:
        self._loop = loop
        self._fate = fate
        self._books = books
        self._tell = tell
        self.violated = violated
        self._wall_seconds = wall_seconds
        self._max_in_flight = max_in_flight
        self._batch_events = batch_events
        self._timeout_seconds = timeout_seconds
        self._requests = 0
        self._in_flight: dict[Life, int] = defaultdict(int)
        self._not_before: dict[tuple[Life, str], float] = {}
        self._heard: dict[Life, set[Identity]] = defaultdict(set)
        self._tokens: dict[str, float] = {}
        self._token_came_at: dict[Life, float] = {}
        self._refused_tokens: set[asyncio.Task[Any] | None] = set()
        """Deliveries that have heard 401, and will try once more."""
        self.weather: list[Weather] = []
        self.fault_chance = 0.0
        self.slow_seconds = 0.5
        self.largest = ANY_SIZE
        self.poison: set[Identity] = set()
        self.taken: dict[Identity, int] = defaultdict(int)
        self.refused_alone: set[Identity] = set()

    def take_on(self, plan: Plan) -> None:
        """From now on it behaves as planned."""
        self.weather, self.fault_chance = list(plan.weather), plan.fault_chance
        self.slow_seconds, self.largest = plan.slow_seconds, plan.largest

    def clear_up(self) -> None:
        """From now on upstream works."""
        self.weather.clear()
        self.fault_chance = 0.0
        self.slow_seconds = min(self.slow_seconds, self._timeout_seconds / 3)
        self.largest = ANY_SIZE

    def longest_wait(self, life: Life) -> float:
        """How long upstream has asked to be left alone, in the worst case of all."""
        return max((until - self._loop.time() for (of, _), until in self._not_before.items() if of is life), default=0)

    async def send(self, request: Request) -> Response:
        """The answer, as it arrives at the agent. Raises Unanswered, as a transport does, where none does."""
        life = this_life()
        assert life is not None
        self._requests += 1
        number = self._requests
        is_push = not request.url.endswith(GET_ACCESS_TOKEN.path)
        app_id = unquote(request.url.split("/apps/")[1].split("/")[0]) if is_push else "token"
        until = self._not_before.get((life, app_id), 0.0)
        delivery = asyncio.current_task()
        if is_push and (self._token_came_at.get(life) == self._loop.time() or delivery in self._refused_tokens):
            until = 0.0  # it has waited for a token, or tries another: the publisher does not know of other batches
        self._refused_tokens.discard(delivery)
        assert self._loop.time() >= until - 1e-6, (
            f"{app_id}: sent {until - self._loop.time():.3f} s before the end of a Retry-After"
        )
        if is_push:
            self._in_flight[life] += 1
            in_flight = self._in_flight[life]
            assert in_flight <= self._max_in_flight, f"{in_flight} requests in flight of {self._max_in_flight}"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response, identities = await self._exchange(number, request, app_id if is_push else None, life)
        except TimeoutError:
            self._tell("agent", "request %d: no answer in time", number)
            raise Unanswered(f"no answer within {self._timeout_seconds:g} s") from None
        except _Cut:
            self._tell("agent", "request %d: cut", number)
            raise Unanswered("the connection was cut") from None
        finally:
            if is_push:
                self._in_flight[life] -= 1
        self._tell("agent", "request %d: hears %d", number, response.status)
        if not is_push:
            self._token_came_at[life] = self._loop.time()
        elif response.status == 401:
            self._refused_tokens.add(delivery)
        if "retry-after" in response.headers:
            self._not_before[life, app_id] = self._loop.time() + self._asked_for(response.headers["retry-after"])
        if is_push and response.status == 200 and b"true" in response.body:
            self._heard[life].update(identities)
        return response

    def _asked_for(self, retry_after: str) -> float:
        if retry_after.isdigit():
            return min(float(retry_after), MAX_RETRY_AFTER_SECONDS)
        date = datetime.strptime(retry_after, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        return min(max(0.0, date.timestamp() - self._wall_seconds()), MAX_RETRY_AFTER_SECONDS)

    async def _exchange(
        self, number: int, request: Request, app_id: str | None, life: Life
    ) -> tuple[Response, list[Identity]]:
        identities: list[Identity] = []
        if app_id is not None:
            assert isinstance(request.body, bytes)
            events = msgspec.json.decode(request.body)["events"]
            assert 1 <= len(events) <= min(MAX_EVENTS_PER_REQUEST, self._batch_events), f"{len(events)} in a request"
            identities = self._books.check_delivery(app_id, events)
            self._books.look_at_the_clock()
            remembered = [identity for identity in identities if not self._books.sent[identity].may_be_forgotten]
            again = self._heard[life].intersection(remembered)
            assert not again, f"sent again after upstream's 200: {self._books.name(again)}"
            assert len(set(remembered)) == len(remembered), f"twice in one request: {self._books.name(remembered)}"
            self._tell("agent", "request %d for %s: %s", number, app_id, self._books.name(identities))
        else:
            self._tell("agent", "request %d for a token", number)
        answer: asyncio.Future[Response] = self._loop.create_future()
        # It arrives whatever becomes of who sent it.
        delay = self._fate.random() * self.slow_seconds
        self._loop.call_later(delay, self._arrive, number, request, app_id, identities, answer, context=WORLD)
        return await answer, identities

    def _arrive(
        self,
        number: int,
        request: Request,
        app_id: str | None,
        identities: list[Identity],
        answer: asyncio.Future[Response],
    ) -> None:
        fault = self._fault(app_id)
        self._tell("upstream", "request %d: %s", number, fault or "works")
        if "timeout" in fault or (len(identities) > self.largest.events and not self.largest.is_said):
            if "after" in fault:
                self._keep(identities)
            return
        if "cut" in fault:
            if "after" in fault:
                self._keep(identities)
            self._reply(answer, None)
            return
        response = self._grant(fault) if app_id is None else self._push(request, identities, fault)
        self._reply(answer, response)

    def _reply(self, answer: asyncio.Future[Response], response: Response | None) -> None:
        def arrive() -> None:
            if answer.done():
                return
            if response is None:
                answer.set_exception(_Cut())
            else:
                answer.set_result(response)

        self._loop.call_later(self._fate.random() * self.slow_seconds, arrive, context=WORLD)

    def _fault(self, app_id: str | None) -> str:
        now = self._loop.time()
        fault = ""
        for weather in self.weather:
            if weather.begins <= now < weather.ends and (weather.app_id in {None, app_id} or app_id is None):
                fault = weather.fault
        if not fault and self._fate.random() < self.fault_chance:
            fault = self._fate.choice(FAULTS)
        if app_id is None:
            return fault.removeprefix("token ") if fault.startswith("token ") else ""
        return "" if fault.startswith("token ") else fault

    def _grant(self, fault: str) -> Response:
        if fault == "401":
            return Response(401, {}, b'{"error":"invalid_client"}')
        if fault == "503":
            return Response(503, self._retry_after(), b"")
        if fault:
            return Response(200, {}, b"<html>welcome</html>")
        token = f"token-{len(self._tokens)}"
        lives_seconds = self._fate.choice((5, 60, 3600))
        self._tokens[token] = self._loop.time() + lives_seconds + 2
        return Response(
            200, {}, msgspec.json.encode({"access_token": token, "token_type": "Bearer", "expires_in": lives_seconds})
        )

    def _push(self, request: Request, identities: list[Identity], fault: str) -> Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if fault == "401" or self._tokens.get(token, 0.0) < self._loop.time():
            return Response(401, {}, b"")
        if fault in {"503", "429"}:
            return Response(int(fault), self._retry_after(), b"slow down")
        if fault == "unknown app":
            return Response(400, {}, b'{"error": "Unknown app"}')
        if fault == "html":
            return Response(200, {}, b"<html>welcome to the hotel</html>")
        if fault == "unsuccessful":
            return Response(200, {}, b'{"success": false}')
        if fault.isdigit() and fault != "413":
            if fault in {"400", "422"}:
                self._refuse(identities)
            return Response(int(fault), {}, b"no")
        if len(identities) > self.largest.events or fault == "413":
            self._refuse(identities)
            return Response(413, {}, b"")
        if self.poison.intersection(identities):
            self._refuse(identities)
            return Response(400, {}, b'{"error": "an event is invalid"}')
        self._keep(identities)
        return Response(200, {}, b'{"success": true}')

    def _keep(self, identities: list[Identity]) -> None:
        for identity in identities:
            self.taken[identity] += 1

    def _refuse(self, identities: list[Identity]) -> None:
        if len(identities) == 1:
            self.refused_alone.add(identities[0])

    def _retry_after(self) -> dict[str, str]:
        seconds = self._fate.choice((0, 1, 7, 30, 120, 7200))
        kind = self._fate.random()
        if kind < 0.4:
            return {}
        if kind < 0.8:
            return {"retry-after": str(seconds)}
        date = datetime.fromtimestamp(self._wall_seconds(), UTC) + timedelta(seconds=seconds)
        return {"retry-after": format_datetime(date, usegmt=True)}


class Line(Transport):
    """The agent's way to the model."""

    def __init__(self, upstream: Upstream, timeout_seconds: float) -> None:
        super().__init__(timeout_seconds=timeout_seconds)
        self._upstream = upstream
        self.is_open = False

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def send(self, request: Request, **_limits: Any) -> Response:
        if not self.is_open:
            raise Retryable("the connection to upstream is closed")
        try:
            return await self._upstream.send(request)
        except AssertionError as error:
            self._upstream.violated(str(error))
            raise
