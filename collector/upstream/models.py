"""The contract's types, as far as they are spoken here, with the operation each belongs to."""

from typing import Annotated

import msgspec

SCOPE_WRITE = "https://api.productiv.com/connector.write"
SCOPE_READ = "https://api.productiv.com/report.read"

MAX_EVENTS_PER_REQUEST = 1000
"""publishUsageEvents: events.maxItems."""

TOKEN_PATH = "/oauth2/token"  # noqa: S105 - a path
"""getAccessToken, on the login host."""
APPS_PATH = "/services/push/v1/customer/apps"
"""setupApplication."""
USAGE_EVENTS_PATH = "/services/push/v1/customer/apps/{appId}/usage-events"
"""publishUsageEvents."""


class AccessToken(msgspec.Struct, frozen=True):
    """getAccessToken, 200. `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - a word of RFC 6750
    expires_in: int = 3600

    def __repr__(self) -> str:
        return f"AccessToken(***, expires_in={self.expires_in})"


class Event(msgspec.Struct, rename="camel", frozen=True):
    """publishUsageEvents: one item of `events`. `timestamp` is in milliseconds since the epoch, int64."""

    timestamp: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    email: str
    event_name: str


class AppSetup(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """setupApplication: the request."""

    app_name: str
    app_description: str | None = None
    app_category: str | None = None
    app_url: str | None = None


class App(msgspec.Struct, rename="camel", frozen=True):
    """setupApplication: the answer."""

    app_id: str
    app_name: str
