"""What schemathesis is told beside the sandbox's document, which cannot say these things. No check is off."""

from typing import Any

import schemathesis

from collector.contract.operations import (
    GET_ACCESS_TOKEN,
    GET_AUDIT_EVENTS,
    LIST_PROVISIONING_EXECUTION_SUMMARIES,
    Operation,
)
from collector.sandbox.grants import CLIENT_ID, CLIENT_SECRET


def _stated(document: Any, operation: Operation) -> Any:
    return document["paths"][operation.path][operation.method.lower()]


def _without_annotations(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_annotations(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        word: _without_annotations(value)
        for word, value in schema.items()
        if word != "format" or value not in {"email", "uri"}
    }


@schemathesis.hook
def before_load_schema(_context: schemathesis.HookContext, document: dict[str, Any]) -> None:
    # Addresses and URLs are any text here: in OpenAPI 3.1 a format only annotates, and real directories hold odd ones.
    document["components"] = _without_annotations(document["components"])
    # Where the contract has no status for a parameter that cannot be read, the sandbox says 400 (see calls.py).
    for operation in (GET_AUDIT_EVENTS, LIST_PROVISIONING_EXECUTION_SUMMARIES):
        _stated(document, operation)["responses"]["400"] = {"description": "not a date-time, or not a page token"}
    # Nobody can make up a page token; an empty one is none.
    for parameter in _stated(document, GET_AUDIT_EVENTS)["parameters"]:
        if parameter["name"] == "nextPageToken":
            parameter["schema"] = {"type": "string", "enum": [""]}
    # Nor credentials.
    [media] = _stated(document, GET_ACCESS_TOKEN)["requestBody"]["content"].values()
    credentials = document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]["properties"]
    credentials["client_id"] = {"type": "string", "enum": [CLIENT_ID]}
    credentials["client_secret"] = {"type": "string", "enum": [CLIENT_SECRET]}
