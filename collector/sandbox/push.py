"""The operations that write: apps, usage events, spend, users, org chart, upload URLs.

For an app that does not exist the contract's status is 400. getProvisionedUsers has no such status: it lists nobody.
"""

import secrets
from collections.abc import Mapping

import msgspec

from collector.clock import Clock
from collector.contract.models import (
    MAX_EVENTS_PER_REQUEST,
    App,
    AppSetup,
    Event,
    OrgChart,
    ProvisionedUsers,
    Spend,
    UploadUrls,
    UsersToRemove,
)
from collector.contract.operations import (
    DELETE_PROVISIONED_USERS,
    GET_BATCH_UPLOAD_URLS,
    GET_PROVISIONED_USERS,
    PUBLISH_ORG_CHART,
    PUBLISH_PROVISIONED_USERS,
    PUBLISH_SPEND_DATA,
    PUBLISH_USAGE_EVENTS,
    SETUP_APPLICATION,
)
from collector.errors import UNPARSABLE
from collector.sandbox.activity import Activity
from collector.sandbox.calls import Call, Handler, bad_request, unknown_app
from collector.sandbox.state import KeptEvent, Profile, State
from collector.sandbox.uploads import Uploads

DONE = {"success": True}
"""What is answered where the contract names no answer."""

_decode_envelope = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_event = msgspec.json.Decoder(Event).decode


class _WholeNumber(msgspec.Struct, rename="camel"):
    """An event whose timestamp is written with a point, or as a power of ten."""

    timestamp: float
    email: str
    event_name: str


_decode_whole_number = msgspec.json.Decoder(_WholeNumber).decode


class Push:
    """Carries them out on one state."""

    def __init__(self, state: State, clock: Clock, uploads: Uploads, activity: Activity, *, create_apps: bool) -> None:
        self._state = state
        self._records = state.records
        self._clock = clock
        self._uploads = uploads
        self._activity = activity
        self._create_apps = create_apps

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By operation ID."""
        return {
            SETUP_APPLICATION.id: self._setup_application,
            PUBLISH_USAGE_EVENTS.id: self._publish_usage_events,
            PUBLISH_SPEND_DATA.id: self._publish_spend_data,
            PUBLISH_PROVISIONED_USERS.id: self._publish_provisioned_users,
            GET_PROVISIONED_USERS.id: self._get_provisioned_users,
            DELETE_PROVISIONED_USERS.id: self._delete_provisioned_users,
            PUBLISH_ORG_CHART.id: self._publish_org_chart,
            GET_BATCH_UPLOAD_URLS.id: self._get_batch_upload_urls,
        }

    async def _setup_application(self, call: Call) -> App:
        setup: AppSetup = call.body
        app_id = secrets.token_hex(6)
        profile = Profile(app_description=setup.app_description, app_category=setup.app_category, app_url=setup.app_url)
        await self._make_app(app_id, setup.app_name, profile)
        return App(app_id, setup.app_name)

    async def _publish_usage_events(self, call: Call) -> object:
        app_id = await self._app(call)
        events: list[KeptEvent] = call.body
        self._activity.took(len(events), await self._state.keep(app_id, events))
        return DONE

    async def _publish_spend_data(self, call: Call) -> object:
        app_id = await self._app(call)
        spend: Spend = call.body
        await self._records.add_spend(app_id, spend.spend_data, self._clock.now_us())
        return DONE

    async def _publish_provisioned_users(self, call: Call) -> object:
        app_id = await self._app(call)
        users: ProvisionedUsers = call.body
        await self._records.set_users(app_id, users.users, self._clock.now_us())
        return DONE

    async def _get_provisioned_users(self, call: Call) -> ProvisionedUsers:
        return ProvisionedUsers(await self._records.users(call.parameters["appId"]))

    async def _delete_provisioned_users(self, call: Call) -> object:
        app_id = await self._app(call)
        users: UsersToRemove = call.body
        await self._records.remove_users(app_id, [user.email for user in users.users], self._clock.now_us())
        return DONE

    async def _publish_org_chart(self, call: Call) -> object:
        chart: OrgChart = call.body
        await self._records.merge_org_chart(chart, self._clock.now_us())
        return DONE

    async def _get_batch_upload_urls(self, call: Call) -> UploadUrls:
        app_id = await self._app(call)
        return UploadUrls([self._uploads.url(call.url, app_id, name) for name in call.parameters["filenames"]])

    async def _app(self, call: Call) -> str:
        """The app that is meant; made now if apps are made when they are first used."""
        app_id: str = call.parameters["appId"]
        if not await self._state.has_app(app_id):
            if not self._create_apps:
                raise unknown_app(app_id)
            await self._make_app(app_id, app_id, Profile())
        return app_id

    async def _make_app(self, app_id: str, app_name: str, profile: Profile) -> None:
        if await self._state.add_app(app_id, app_name, profile):
            details = {"appId": app_id, "appName": app_name}
            await self._records.audit("app.created", details, self._clock.now_us())


def read_events(body: bytes) -> list[KeptEvent]:
    """The events of a publishUsageEvents request. Raises Refusal with 400 that says which is wrong and how.

    Each is kept as it was written, so they are read one by one. Any text is an address: keys come as they are.
    """
    try:
        fields = _decode_envelope(body)
        if "events" not in fields:
            raise bad_request("events: missing")
        items = _decode_items(fields["events"])
    except UNPARSABLE as error:
        raise bad_request(str(error)) from None
    if len(items) > MAX_EVENTS_PER_REQUEST:
        raise bad_request(f"events: {len(items)} items, at most {MAX_EVENTS_PER_REQUEST} are allowed")
    kept = []
    for index, item in enumerate(items):
        try:
            event = _read_event(item)
        except UNPARSABLE as error:
            raise bad_request(f"events[{index}]: {error}") from None
        kept.append(KeptEvent(event.timestamp, event.email, event.event_name, bytes(item)))
    return kept


def _read_event(item: msgspec.Raw) -> Event:
    try:
        return _decode_event(item)
    except msgspec.ValidationError as error:
        try:
            event = _decode_whole_number(item)
        except msgspec.ValidationError:
            raise error from None
        # 1.0 is an integer: JSON Schema judges numbers by their value.
        if not event.timestamp.is_integer() or abs(event.timestamp) >= 2**63:
            raise
        return Event(int(event.timestamp), event.email, event.event_name)
