"""A client of all fifteen operations, for programs and for the command line.

Nothing here is durable: events that must not be lost go through the collector's queue.
"""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlencode

from collector.clock import Clock
from collector.config.model import Upstream
from collector.contract import models, operations
from collector.contract.models import MAX_EVENTS_PER_REQUEST, MAX_ORG_CHART_USERS_PER_REQUEST, AccessToken
from collector.contract.operations import SCOPE_WRITE, Operation
from collector.errors import (
    ChunkFailed,
    CollectorError,
    CredentialsRefused,
    MalformedAnswer,
    Rejected,
    Retryable,
    TooLarge,
)
from collector.upstream.calls import Calls, OnWait

UPLOAD_QUERY_BYTES = 2048
"""getBatchUploadUrls: of file names in one URL, as it has them; servers refuse longer ones than 8 KiB, some than 4."""

AUDIT_WINDOW = timedelta(days=30)
"""getAuditEvents: the live service is known to refuse longer ones; the contract has no limit."""

Item = TypeVar("Item")


class Client:
    """The operations by what they do. `async with Client(settings) as client:`, inside the loop that uses it.

    Every method raises Retryable (after several attempts), Rejected, Unusable (credentials, a redirect, an answer that
    is not the contract's) or, where doing it twice would do harm, OutcomeUnknown. Long lists are sent in several
    requests, and ChunkFailed says which of them failed and what is upstream already.

    Between attempts it waits as long as upstream asks for, up to an hour each time; `on_wait` hears of it before.
    """

    def __init__(self, settings: Upstream, *, clock: Clock | None = None, on_wait: OnWait | None = None) -> None:
        self._clock = clock or Clock()
        self._usage_events_path = settings.usage_events_path
        self._calls = Calls(settings, clock=self._clock, on_wait=on_wait)

    async def __aenter__(self) -> Self:
        """Ready to call."""
        await self._calls.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """All connections are closed."""
        await self._calls.close()

    async def access_token(self, scope: str = SCOPE_WRITE) -> AccessToken:
        """getAccessToken: a new token, with the scope of the push or of the export operations."""
        return await self._calls.access_token(scope)

    @property
    def ahead(self) -> timedelta:
        """How far our clock is ahead of upstream's, as its last answer says; not less than nothing."""
        return timedelta(seconds=self._calls.ahead_seconds)

    # -- push ------------------------------------------------------------------------------------------------------

    async def create_app(self, setup: models.AppSetup) -> models.App:
        """setupApplication: the new app. Not repeated where it may exist already; then OutcomeUnknown."""
        return await self._calls.call(operations.SETUP_APPLICATION, body=setup)

    async def push_events(self, app_id: str, events: Iterable[models.Event]) -> int:
        """publishUsageEvents, 1000 events a request, fewer where it finds them too large: so many are upstream, all."""

        async def push(chunk: Sequence[models.Event]) -> None:
            body = models.Events(list(chunk))
            await self._calls.call(
                operations.PUBLISH_USAGE_EVENTS, {"appId": app_id}, body=body, path=self._usage_events_path
            )

        return await _in_chunks(operations.PUBLISH_USAGE_EVENTS, events, MAX_EVENTS_PER_REQUEST, push)

    async def push_spend(self, app_id: str, records: Sequence[models.SpendRecord]) -> None:
        """publishSpendData, in one request. Not repeated where it may have been booked already; then OutcomeUnknown."""
        await self._calls.call(operations.PUBLISH_SPEND_DATA, {"appId": app_id}, body=models.Spend(list(records)))

    async def set_users(self, app_id: str, users: Sequence[models.ProvisionedUser]) -> None:
        """publishProvisionedUsers: these are all users of the app; whoever is not among them is one no more.

        One request however many they are, for a second one would replace what the first has set.
        """
        await self._calls.call(
            operations.PUBLISH_PROVISIONED_USERS, {"appId": app_id}, body=models.ProvisionedUsers(list(users))
        )

    async def list_users(self, app_id: str) -> Sequence[models.ProvisionedUser]:
        """getProvisionedUsers: all users of the app."""
        return (await self._calls.call(operations.GET_PROVISIONED_USERS, {"appId": app_id})).users

    async def delete_users(self, app_id: str, emails: Iterable[str]) -> None:
        """deleteProvisionedUsers: none of these is a user of the app any more."""
        body = models.UsersToRemove([models.UserToRemove(email) for email in emails])
        await self._calls.call(operations.DELETE_PROVISIONED_USERS, {"appId": app_id}, body=body)

    async def push_org_chart(
        self, users: Iterable[models.OrgChartUser], custom_fields: Sequence[models.CustomField] = ()
    ) -> int:
        """publishOrgChart, 1000 people a request, each with the custom fields: so many people are merged into it.

        Custom fields alone are one request, too.
        """

        async def push(chunk: Sequence[models.OrgChartUser]) -> None:
            await self._calls.call(operations.PUBLISH_ORG_CHART, body=models.OrgChart(list(chunk), list(custom_fields)))

        people = await _in_chunks(operations.PUBLISH_ORG_CHART, users, MAX_ORG_CHART_USERS_PER_REQUEST, push)
        if not people and custom_fields:
            await push([])
        return people

    async def upload_urls(self, app_id: str, filenames: Sequence[str]) -> Mapping[str, str]:
        """getBatchUploadUrls: a signed URL by file name. Whoever has such a URL may upload: it belongs into no log."""
        urls: dict[str, str] = {}
        for query in upload_queries(filenames):
            answer = await self._calls.call(operations.GET_BATCH_UPLOAD_URLS, {"appId": app_id}, query=query)
            urls |= {url.filename: url.upload_url for url in answer.upload_urls}
        if missing := [name for name in filenames if name not in urls]:
            raise MalformedAnswer(f"{operations.GET_BATCH_UPLOAD_URLS.id}: no uploadUrl for {missing[0]!r}")
        return urls

    async def upload(
        self, app_id: str, files: Sequence[Path], on_sent: Callable[[Path, int], object] | None = None
    ) -> None:
        """Every file is upstream, under its own name, one after the other and streamed from disk.

        `on_sent` hears how many bytes of a file have gone: fewer again where it is sent once more. A URL that is
        refused (403) is asked for anew.
        """
        names = [file.name for file in files]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise Rejected(f"upload: two files are called {min(repeated)!r}; upstream tells them apart by name only")
        urls = await self.upload_urls(app_id, names)
        for file in files:
            hears = None if on_sent is None else functools.partial(on_sent, file)
            try:
                await self._calls.upload(urls[file.name], file, hears)
            except CredentialsRefused:  # the URL has expired meanwhile
                url = (await self.upload_urls(app_id, [file.name]))[file.name]
                await self._calls.upload(url, file, hears)

    # -- export ----------------------------------------------------------------------------------------------------

    async def list_apps(self) -> Sequence[models.AppSummary]:
        """getAppSummaries: all apps of the portfolio."""
        return (await self._calls.call(operations.GET_APP_SUMMARIES)).apps

    async def show_app(self, application_id: str) -> models.AppDetails:
        """getAppDetails: one app at length. Its aggregates lag by up to a day."""
        return await self._calls.call(operations.GET_APP_DETAILS, {"applicationId": application_id})

    async def list_workflows(self) -> Sequence[models.Workflow]:
        """listProvisioningWorkflows: all workflows."""
        return (await self._calls.call(operations.LIST_PROVISIONING_WORKFLOWS)).workflows

    async def list_executions(
        self, workflow_id: str, since: datetime | None = None, until: datetime | None = None
    ) -> Sequence[models.ExecutionSummary]:
        """listProvisioningExecutionSummaries: the workflow's executions in [since, until)."""
        return (
            await self._calls.call(
                operations.LIST_PROVISIONING_EXECUTION_SUMMARIES,
                {"workflowId": workflow_id},
                query=[*_time("startTime", since), *_time("endTime", until)],
            )
        ).executions

    async def show_execution(self, workflow_id: str, execution_id: str) -> models.Execution:
        """getProvisioningWorkflowExecution: one execution with its outcome for each user."""
        return await self._calls.call(
            operations.GET_PROVISIONING_WORKFLOW_EXECUTION, {"workflowId": workflow_id, "executionId": execution_id}
        )

    async def audit_events(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[models.AuditEvent]:
        """getAuditEvents: the events of [since, until), page by page; without `until`, up to now.

        The end is fixed when the first page is asked for, so that events which come meanwhile do not shift the pages. A
        range of more than 30 days is asked for in several, none of them wholly in the future. Raises MalformedAnswer
        where upstream repeats a page token, which would never end, and Retryable where it refuses one that it gave.
        """
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        end = until or now
        for name, time in (("startTime", since), ("endTime", end)):
            _time(name, time)  # as subtracting them needs a time zone of each
        if end - max(now, since or now) > AUDIT_WINDOW:  # 9999-12-31 is a way to say "all"
            end = max(now, since or now) + AUDIT_WINDOW
        starts = [since]
        while (start := starts[-1]) is not None and end - start > AUDIT_WINDOW:
            starts.append(start + AUDIT_WINDOW)
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            async for event in self._audit_events(start, stop):
                yield event

    async def _audit_events(self, since: datetime | None, until: datetime | None) -> AsyncIterator[models.AuditEvent]:
        window = [*_time("startTime", since), *_time("endTime", until)]
        page_token: list[tuple[str, str]] = []
        seen: set[str] = set()
        while True:
            try:
                page = await self._calls.call(operations.GET_AUDIT_EVENTS, query=[*window, *page_token])
            except Rejected as error:
                if page_token:  # it may have expired, or be that of a server which is no more
                    raise Retryable(f"{error}; from the first page on it may succeed") from error
                raise
            for event in page.events:
                yield event
            if not page.next_page_token:
                return
            if page.next_page_token in seen:
                raise MalformedAnswer(f"{operations.GET_AUDIT_EVENTS.id}: nextPageToken came a second time")
            seen.add(page.next_page_token)
            page_token = [("nextPageToken", page.next_page_token)]


def upload_queries(filenames: Iterable[str]) -> Iterator[Sequence[tuple[str, str]]]:
    """The names as queries of getBatchUploadUrls, each of `UPLOAD_QUERY_BYTES` at most or of one name."""
    query: list[tuple[str, str]] = []
    for name in filenames:
        longer = [*query, ("filenames", name)]
        if query and len(urlencode(longer, errors="replace")) > UPLOAD_QUERY_BYTES:
            yield query
            longer = longer[-1:]
        query = longer
    if query:
        yield query


async def _in_chunks(
    operation: Operation[None], items: Iterable[Item], size: int, push: Callable[[Sequence[Item]], Awaitable[None]]
) -> int:
    """Pushes all items, `size` at a time, and returns how many they were; half as many from one on that is too large.

    Raises ChunkFailed.
    """
    done = number = 0
    source = iter(items)
    chunk = list(islice(source, size))
    while chunk:
        part = chunk[:size]
        last = done + len(part)
        try:
            await push(part)
        except CollectorError as error:
            if isinstance(error, TooLarge) and len(part) > 1:
                size = len(part) // 2
                continue
            where = f"{operation.id}: chunk {number + 1}, items {done + 1} to {last}, failed; {done} are upstream"
            raise ChunkFailed(f"{where}. {error}", done=done, last=last) from error
        done, number = last, number + 1
        chunk = chunk[size:] or list(islice(source, size))
    return done


def _time(name: str, time: datetime | None) -> list[tuple[str, str]]:
    """A query parameter in RFC 3339, UTC; nothing where there is no time. Raises Rejected where it has no time zone."""
    if time is None:
        return []
    if time.tzinfo is None:
        raise Rejected(f"{name}: {time.isoformat()} has no time zone")
    return [(name, time.astimezone(UTC).isoformat().replace("+00:00", "Z"))]
