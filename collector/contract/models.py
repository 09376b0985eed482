"""What the API's operations take and answer, each with the operation it belongs to.

Field names are the contract's. A field with a default may be missing, in what is sent and in what is answered; a null
counts as missing. Answers may hold more fields than are named here: they are ignored.

The contract requires no field of an answer. What an answer is there for, its list or its ID, is required here: an empty
object may be a proxy's or a defect's, and taken for an empty list it would let the audit cursor pass over events, and
users be removed without the question whether they should be.
"""

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec

MAX_EVENTS_PER_REQUEST = 1000
"""publishUsageEvents: events.maxItems."""
MAX_ORG_CHART_USERS_PER_REQUEST = 1000
"""publishOrgChart: users.maxItems."""
MAX_AUDIT_EVENTS_PER_PAGE = 500
"""getAuditEvents."""
EXPORT_REQUESTS_PER_SECOND = 20
"""The export operations: so many requests of one customer."""

Email = Annotated[str, msgspec.Meta(extra_json_schema={"format": "email"})]
Url = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uri"})]


class TokenRequest(msgspec.Struct, frozen=True):
    """getAccessToken, the request, as a form (RFC 6749 section 4.4.2). `scope` holds scopes separated by spaces."""

    grant_type: Literal["client_credentials"]
    client_id: str
    client_secret: str
    scope: str | None = None

    def __repr__(self) -> str:
        return f"TokenRequest({self.client_id!r}, ***)"


class AccessToken(msgspec.Struct, frozen=True):
    """getAccessToken, the answer. `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - a word of RFC 6750
    expires_in: int = 3600

    def __repr__(self) -> str:
        return f"AccessToken(***, expires_in={self.expires_in})"


class AppSetup(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """setupApplication, the request."""

    app_name: str
    app_description: str | None = None
    app_category: str | None = None
    app_url: Url | None = None


class App(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """setupApplication, the answer. `app_id` is what later calls name the app by."""

    app_id: str
    app_name: str | None = None


class Event(msgspec.Struct, rename="camel", frozen=True):
    """publishUsageEvents: one event. `timestamp` is in milliseconds since the epoch, int64."""

    timestamp: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1, extra_json_schema={"format": "int64"})]
    email: Email
    event_name: str


class Events(msgspec.Struct, frozen=True):
    """publishUsageEvents, the request."""

    events: Annotated[list[Event], msgspec.Meta(max_length=MAX_EVENTS_PER_REQUEST)]


class SpendRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """publishSpendData: one record. `amount` is in units of `currency`, a code such as USD; `date` is a day."""

    amount: float | None = None
    currency: str | None = None
    date: dt.date | None = None
    description: str | None = None


class Spend(msgspec.Struct, rename="camel", frozen=True):
    """publishSpendData, the request."""

    spend_data: list[SpendRecord] = []


class ProvisionedUser(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """publishProvisionedUsers and getProvisionedUsers: one user of an app."""

    email: Email
    first_name: str | None = None
    last_name: str | None = None
    role: str | None = None


class ProvisionedUsers(msgspec.Struct, frozen=True):
    """publishProvisionedUsers, the request; getProvisionedUsers, the answer. It is the full list of an app's users."""

    users: list[ProvisionedUser]


class UserToRemove(msgspec.Struct, frozen=True):
    """deleteProvisionedUsers: one user."""

    email: Email


class UsersToRemove(msgspec.Struct, frozen=True):
    """deleteProvisionedUsers, the request."""

    users: list[UserToRemove]


class OrgChartUser(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """publishOrgChart: one person and who they report to."""

    email: Email
    first_name: str | None = None
    last_name: str | None = None
    manager_email: Email | None = None
    department: str | None = None
    title: str | None = None


class CustomField(msgspec.Struct, frozen=True, omit_defaults=True):
    """publishOrgChart: a field of the customer's own, and its data type."""

    name: str | None = None
    type: str | None = None


class OrgChart(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """publishOrgChart, the request: a part of the org chart that is merged into what is there."""

    users: Annotated[list[OrgChartUser], msgspec.Meta(max_length=MAX_ORG_CHART_USERS_PER_REQUEST)] = []
    custom_fields_config: list[CustomField] = []


class UploadUrl(msgspec.Struct, rename="camel", frozen=True):
    """getBatchUploadUrls: where one file goes, by PUT. The URL is signed: whoever has it may upload."""

    filename: str
    upload_url: Url

    def __repr__(self) -> str:
        return f"UploadUrl({self.filename!r}, ***)"


class UploadUrls(msgspec.Struct, rename="camel", frozen=True):
    """getBatchUploadUrls, the answer."""

    upload_urls: list[UploadUrl]


class AppSummary(msgspec.Struct, rename="pascal", frozen=True, omit_defaults=True):
    """getAppSummaries: one app of the customer's portfolio."""

    application_id: str
    app_name: str | None = None
    app_status: str | None = None
    vendor_name: str | None = None
    app_category: str | None = None


class AppSummaries(msgspec.Struct, frozen=True):
    """getAppSummaries, the answer."""

    apps: list[AppSummary]


class Instance(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAppDetails: one instance of an app."""

    instance_id: str | None = None
    instance_name: str | None = None


class Activity(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAppDetails: how much an app is used. Aggregates lag by up to a day."""

    total_users: int | None = None
    active_users: int | None = None
    last_activity_date: dt.date | None = None


class Contract(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAppDetails: one contract with the vendor."""

    contract_id: str | None = None
    start_date: dt.date | None = None
    end_date: dt.date | None = None
    total_value: float | None = None


class FiscalSpend(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAppDetails: what an app costs, in units of `currency`."""

    total_spend: float | None = None
    currency: str | None = None


class Compliance(msgspec.Struct, frozen=True, omit_defaults=True):
    """getAppDetails: the security standards an app meets."""

    standards: list[str] | None = None


class AppDetails(msgspec.Struct, rename="pascal", frozen=True, omit_defaults=True):
    """getAppDetails, the answer."""

    application_id: str
    app_name: str | None = None
    app_status: str | None = None
    vendor_name: str | None = None
    instances: list[Instance] | None = None
    activity: Activity | None = None
    contracts: list[Contract] | None = None
    fiscal_spend: FiscalSpend | None = None
    compliance: Compliance | None = None
    sso_protocols: list[str] | None = msgspec.field(default=None, name="SSOProtocols")


class Workflow(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """listProvisioningWorkflows: one workflow."""

    workflow_id: str
    workflow_name: str | None = None
    application_id: str | None = None
    status: str | None = None


class Workflows(msgspec.Struct, frozen=True):
    """listProvisioningWorkflows, the answer."""

    workflows: list[Workflow]


class ExecutionSummary(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """listProvisioningExecutionSummaries: one execution of a workflow."""

    execution_id: str
    workflow_id: str | None = None
    status: str | None = None
    start_time: dt.datetime | None = None
    end_time: dt.datetime | None = None


class ExecutionSummaries(msgspec.Struct, frozen=True):
    """listProvisioningExecutionSummaries, the answer."""

    executions: list[ExecutionSummary]


class Outcome(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getProvisioningWorkflowExecution: what an execution means for one user."""

    email: Email | None = None
    suggested_outcome: str | None = None
    actioned_outcome: str | None = None


class Execution(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getProvisioningWorkflowExecution, the answer."""

    execution_id: str
    workflow_id: str | None = None
    status: str | None = None
    users: list[Outcome] | None = None


class AuditEvent(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAuditEvents: something somebody did on the platform."""

    event_id: str
    event_type: str | None = None
    timestamp: dt.datetime | None = None
    user_email: Email | None = None
    details: dict[str, Any] | None = None


class AuditEvents(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """getAuditEvents, the answer: one page. Without a token it is the last one."""

    events: list[AuditEvent]
    next_page_token: str | None = None
