"""The OpenAPI 3.1 document of the sandbox, made from the contract's table and models.

It states the contract and no more: the statuses beside the contract's that the sandbox answers are in words only.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from collector.contract.operations import (
    DELETE_PROVISIONED_USERS,
    GET_APP_DETAILS,
    GET_APP_SUMMARIES,
    GET_AUDIT_EVENTS,
    GET_BATCH_UPLOAD_URLS,
    GET_PROVISIONED_USERS,
    GET_PROVISIONING_WORKFLOW_EXECUTION,
    LIST_PROVISIONING_EXECUTION_SUMMARIES,
    LIST_PROVISIONING_WORKFLOWS,
    OPERATIONS,
    PUBLISH_PROVISIONED_USERS,
    PUBLISH_SPEND_DATA,
    PUBLISH_USAGE_EVENTS,
    SETUP_APPLICATION,
    Operation,
    Parameter,
)
from collector.sandbox.exact import as_answered, as_asked

Json = dict[str, Any]

_SECURITY = "bearerAuth"
_ABOUT = (
    "The operations as the API's contract states them, and by their side, of the sandbox itself: 429 with Retry-After "
    "beyond the export operations' rate, 400 for a query parameter that cannot be read, 405 and 413."
)
_OF_APP = (
    PUBLISH_USAGE_EVENTS,
    PUBLISH_SPEND_DATA,
    PUBLISH_PROVISIONED_USERS,
    GET_PROVISIONED_USERS,
    DELETE_PROVISIONED_USERS,
    GET_BATCH_UPLOAD_URLS,
)
_WORKFLOW_ID = "$response.body#/workflows/0/workflowId"
LINKS: Sequence[tuple[Operation, Operation, dict[str, str]]] = (
    *((SETUP_APPLICATION, operation, {"appId": "$response.body#/appId"}) for operation in _OF_APP),
    (SETUP_APPLICATION, GET_APP_DETAILS, {"applicationId": "$response.body#/appId"}),
    (GET_APP_SUMMARIES, GET_APP_DETAILS, {"applicationId": "$response.body#/apps/0/ApplicationId"}),
    (LIST_PROVISIONING_WORKFLOWS, LIST_PROVISIONING_EXECUTION_SUMMARIES, {"workflowId": _WORKFLOW_ID}),
    (
        LIST_PROVISIONING_EXECUTION_SUMMARIES,
        GET_PROVISIONING_WORKFLOW_EXECUTION,
        {"workflowId": "$request.path.workflowId", "executionId": "$response.body#/executions/0/executionId"},
    ),
    (GET_AUDIT_EVENTS, GET_AUDIT_EVENTS, {"nextPageToken": "$response.body#/nextPageToken"}),
)
"""What an answer says that another operation can be called with."""


def document(url: str) -> Json:
    """The document of a sandbox at `url`."""
    asked = [as_asked(operation.request) for operation in OPERATIONS if operation.request]
    answered = [as_answered(operation.answer) for operation in OPERATIONS if operation.answer]
    parameters = {as_asked(parameter.type) for operation in OPERATIONS for parameter in operation.parameters}
    kinds = [*asked, *answered, *parameters]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    stated = dict(zip(kinds, map(_stated, schemas), strict=True))
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, stated)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Productiv Developer API, a sandbox", "version": "v1", "description": _ABOUT},
        "servers": [{"url": url}],
        "security": [{_SECURITY: []}],
        "tags": [{"name": tag} for tag in sorted({operation.tag for operation in OPERATIONS})],
        "paths": paths,
        "components": {
            "schemas": {name: _stated(schema) for name, schema in components.items()},
            "securitySchemes": {_SECURITY: {"type": "http", "scheme": "bearer", "bearerFormat": "OAuth2"}},
        },
    }


def _operation(operation: Operation, stated: dict[Any, Json]) -> Json:
    done: Json = {"description": HTTPStatus.OK.phrase}
    if operation.answer:
        done["content"] = {"application/json": {"schema": stated[as_answered(operation.answer)]}}
    links = {
        f"{target.id}By{'And'.join(parameters)}": {"operationId": target.id, "parameters": parameters}
        for source, target, parameters in LINKS
        if source is operation
    }
    if links:
        done["links"] = links
    description: Json = {
        "operationId": operation.id,
        "summary": operation.about,
        "tags": [operation.tag],
        "responses": {"200": done}
        | {str(status): {"description": HTTPStatus(status).phrase} for status in operation.errors},
    }
    if operation.scope is None:
        description["security"] = []
    else:
        description["description"] = f"Needs the scope {operation.scope}"
    if operation.parameters:
        description["parameters"] = [_parameter(parameter, stated) for parameter in operation.parameters]
    if operation.request:
        content = {operation.request_format: {"schema": stated[as_asked(operation.request)]}}
        description["requestBody"] = {"required": True, "content": content}
    return description


def _parameter(parameter: Parameter, stated: dict[Any, Json]) -> Json:
    description: Json = {
        "name": parameter.name,
        "in": parameter.place.value,
        "description": parameter.about,
        "schema": stated[as_asked(parameter.type)],
    }
    if parameter.is_required:
        description["required"] = True
    if parameter.type == list[str]:
        description["explode"] = True
    return description


def _stated(schema: Any) -> Any:
    """A schema of msgspec's, in the contract's words: choices have a type, and what a format says is said once."""
    if isinstance(schema, list):
        return [_stated(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    stated = {name: _stated(part) for name, part in schema.items()}
    if "enum" in stated:
        stated["type"] = "string"
    if stated.get("format") == "int64":
        del stated["minimum"], stated["maximum"]
    if stated.get("required") == []:
        del stated["required"]
    return stated
