"""The fifteen operations: where each is, what it needs, takes and answers, and whether doing it twice does harm.

One table, read by the client that calls them, the sandbox that serves them and describes them, the gateway that passes
them on, and the command line.
"""

from datetime import datetime
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

from collector.contract import models

Answer = TypeVar("Answer")

SCOPE_WRITE = "https://api.productiv.com/connector.write"
SCOPE_READ = "https://api.productiv.com/report.read"

_PUSH = "/services/push/v1/customer"
_EXPORT = "/services/export/v1/customer"


class In(Enum):
    """Where a parameter stands in a request."""

    PATH = "path"
    QUERY = "query"


class Parameter(NamedTuple):
    """One parameter of an operation."""

    name: str
    place: In
    type: Any
    about: str

    @property
    def is_required(self) -> bool:
        """Without it the operation cannot be called."""
        return self.place is In.PATH or self.type == list[str]


class Operation(NamedTuple, Generic[Answer]):
    """One operation of the API. `is_export` is limited to `EXPORT_REQUESTS_PER_SECOND`."""

    id: str
    method: str
    path: str
    about: str
    tag: str
    scope: str | None = SCOPE_WRITE
    parameters: tuple[Parameter, ...] = ()
    request: Any = None
    """The type of the body that is sent."""
    request_format: str = "application/json"
    answer: type[Answer] | None = None
    """The type of a 200's body; without one the contract says nothing about it."""
    errors: tuple[int, ...] = (400, 401)
    """The statuses beside 200 that the contract states."""
    is_replayable: bool = True
    """Doing it a second time changes nothing. Where not, an attempt of unknown outcome must not be repeated blindly."""

    @property
    def is_export(self) -> bool:
        """It reads the customer's data, at a limited rate."""
        return self.scope == SCOPE_READ


_app = Parameter("appId", In.PATH, str, "The app, as setupApplication named it.")
_workflow = Parameter("workflowId", In.PATH, str, "The workflow.")
_since = Parameter("startTime", In.QUERY, datetime, "The earliest time that is asked for.")
_until = Parameter("endTime", In.QUERY, datetime, "The time up to which is asked, itself left out.")

GET_ACCESS_TOKEN = Operation(
    "getAccessToken",
    "POST",
    "/oauth2/token",
    "An access token for client credentials, from the login host.",
    "Authentication",
    scope=None,
    request=models.TokenRequest,
    request_format="application/x-www-form-urlencoded",
    answer=models.AccessToken,
    errors=(401,),
)
SETUP_APPLICATION = Operation(
    "setupApplication",
    "POST",
    f"{_PUSH}/apps",
    "A new app. Called twice it may make two.",
    "Applications",
    request=models.AppSetup,
    answer=models.App,
    is_replayable=False,
)
PUBLISH_USAGE_EVENTS: Operation[None] = Operation(
    "publishUsageEvents",
    "POST",
    f"{_PUSH}/apps/{{appId}}/usage-events",
    "Up to 1000 usage events of one app; timestamp, email and eventName together say which event it is.",
    "Usage Events",
    parameters=(_app,),
    request=models.Events,
)
PUBLISH_SPEND_DATA: Operation[None] = Operation(
    "publishSpendData",
    "POST",
    f"{_PUSH}/apps/{{appId}}/spend",
    "Spend on one app. Sent twice it may count twice.",
    "Spend Data",
    parameters=(_app,),
    request=models.Spend,
    is_replayable=False,
)
PUBLISH_PROVISIONED_USERS: Operation[None] = Operation(
    "publishProvisionedUsers",
    "POST",
    f"{_PUSH}/apps/{{appId}}/users",
    "The full list of an app's users; it takes the place of the list before.",
    "Provisioned Users",
    parameters=(_app,),
    request=models.ProvisionedUsers,
)
GET_PROVISIONED_USERS = Operation(
    "getProvisionedUsers",
    "GET",
    f"{_PUSH}/apps/{{appId}}/users",
    "The users of an app.",
    "Provisioned Users",
    parameters=(_app,),
    answer=models.ProvisionedUsers,
    errors=(401,),
)
DELETE_PROVISIONED_USERS: Operation[None] = Operation(
    "deleteProvisionedUsers",
    "DELETE",
    f"{_PUSH}/apps/{{appId}}/users",
    "Takes users from an app's list.",
    "Provisioned Users",
    parameters=(_app,),
    request=models.UsersToRemove,
)
PUBLISH_ORG_CHART: Operation[None] = Operation(
    "publishOrgChart",
    "PUT",
    f"{_PUSH}/org-chart",
    "Up to 1000 people of the org chart, merged into what is there.",
    "Org Chart",
    request=models.OrgChart,
)
GET_BATCH_UPLOAD_URLS = Operation(
    "getBatchUploadUrls",
    "GET",
    f"{_PUSH}/apps/{{appId}}/upload",
    "A signed URL for each file that is to be uploaded by PUT.",
    "Batch Upload",
    parameters=(_app, Parameter("filenames", In.QUERY, list[str], "The files' names; repeated, one a file.")),
    answer=models.UploadUrls,
)
GET_APP_SUMMARIES = Operation(
    "getAppSummaries",
    "GET",
    f"{_EXPORT}/app-summaries",
    "All apps of the customer's portfolio, in short. At most 20 requests a second.",
    "App Summaries",
    scope=SCOPE_READ,
    answer=models.AppSummaries,
    errors=(401,),
)
GET_APP_DETAILS = Operation(
    "getAppDetails",
    "GET",
    f"{_EXPORT}/app-details/{{applicationId}}",
    "One app at length. At most 20 requests a second.",
    "App Details",
    scope=SCOPE_READ,
    parameters=(Parameter("applicationId", In.PATH, str, "The app, as getAppSummaries names it."),),
    answer=models.AppDetails,
    errors=(401, 404),
)
LIST_PROVISIONING_WORKFLOWS = Operation(
    "listProvisioningWorkflows",
    "GET",
    f"{_EXPORT}/provisioning-workflows",
    "All provisioning workflows. At most 20 requests a second.",
    "Provisioning Workflows",
    scope=SCOPE_READ,
    answer=models.Workflows,
    errors=(401,),
)
LIST_PROVISIONING_EXECUTION_SUMMARIES = Operation(
    "listProvisioningExecutionSummaries",
    "GET",
    f"{_EXPORT}/provisioning-workflows/{{workflowId}}/executions",
    "A workflow's executions within a time range, in short. At most 20 requests a second.",
    "Provisioning Workflows",
    scope=SCOPE_READ,
    parameters=(_workflow, _since, _until),
    answer=models.ExecutionSummaries,
    errors=(401,),
)
GET_PROVISIONING_WORKFLOW_EXECUTION = Operation(
    "getProvisioningWorkflowExecution",
    "GET",
    f"{_EXPORT}/provisioning-workflows/{{workflowId}}/executions/{{executionId}}",
    "One execution with what it means for each user. At most 20 requests a second.",
    "Provisioning Workflows",
    scope=SCOPE_READ,
    parameters=(_workflow, Parameter("executionId", In.PATH, str, "The execution.")),
    answer=models.Execution,
    errors=(401, 404),
)
GET_AUDIT_EVENTS = Operation(
    "getAuditEvents",
    "GET",
    f"{_EXPORT}/audit-events",
    "What people did on the platform, at most 500 events a page. At most 20 requests a second.",
    "Audit Events",
    scope=SCOPE_READ,
    parameters=(
        _since,
        _until,
        Parameter("nextPageToken", In.QUERY, str, "What the page before said; without it the first page is meant."),
    ),
    answer=models.AuditEvents,
    errors=(401,),
)

OPERATIONS: tuple[Operation[Any], ...] = (
    GET_ACCESS_TOKEN,
    SETUP_APPLICATION,
    PUBLISH_USAGE_EVENTS,
    PUBLISH_SPEND_DATA,
    PUBLISH_PROVISIONED_USERS,
    GET_PROVISIONED_USERS,
    DELETE_PROVISIONED_USERS,
    PUBLISH_ORG_CHART,
    GET_BATCH_UPLOAD_URLS,
    GET_APP_SUMMARIES,
    GET_APP_DETAILS,
    LIST_PROVISIONING_WORKFLOWS,
    LIST_PROVISIONING_EXECUTION_SUMMARIES,
    GET_PROVISIONING_WORKFLOW_EXECUTION,
    GET_AUDIT_EVENTS,
)
BY_ID = {operation.id: operation for operation in OPERATIONS}
