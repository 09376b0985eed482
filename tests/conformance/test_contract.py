"""The sandbox's own document states what the contract states: no more, no less, nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.contract.operations import OPERATIONS
from collector.sandbox.openapi import document

PROJECT = Path(__file__).parents[2]
PLACES = [PROJECT / steps / "shared" / "contract" for steps in ("..", "../..")]
Json = dict[str, Any]

# What says something about requests and answers. Left out are words for people, examples and hosts.
SCHEMA_WORDS = {
    "type",
    "format",
    "enum",
    "maxItems",
    "minItems",
    "maxLength",
    "minLength",
    "minimum",
    "maximum",
    "items",
}
SCHEMA_WORDS |= {
    "pattern",
    "properties",
    "required",
    "additionalProperties",
    "oneOf",
    "anyOf",
    "allOf",
    "default",
    "const",
}


@pytest.fixture(scope="module")
def contract() -> Json:
    files = [file for place in PLACES for file in sorted(place.glob("*.yml"))]
    if not files:
        pytest.skip("the contract is not beside the project, in ../shared/contract")
    read: Json = msgspec.yaml.decode(files[0].read_bytes())
    return read


@pytest.fixture(scope="module")
def ours() -> Json:
    # By way of JSON, as it is served.
    read: Json = msgspec.json.decode(msgspec.json.encode(document("http://127.0.0.1:8788")))
    return read


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def schema(document: Json, stated: Json) -> Json:
    """A schema without references and without words for people."""
    while "$ref" in stated:
        *_, name = stated["$ref"].split("/")
        stated = document["components"]["schemas"][name]
    assert not {"oneOf", "anyOf", "allOf"} & stated.keys(), "this comparison does not look into those"
    plain = {word: value for word, value in stated.items() if word in SCHEMA_WORDS}
    if "properties" in plain:
        plain["properties"] = {name: schema(document, part) for name, part in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = schema(document, plain["items"])
    if "required" in plain:
        plain["required"] = sorted(plain["required"])
    return plain


def content(document: Json, stated: Json) -> Json:
    return {kind: schema(document, media["schema"]) for kind, media in stated.get("content", {}).items()}


def summary(document: Json) -> dict[str, Json]:
    """By operation: all that a client and a server must agree on."""
    return {
        operation["operationId"]: {
            "place": (method, path),
            "tags": operation["tags"],
            "security": operation.get("security", document["security"]),
            "parameters": {
                (parameter["name"], parameter["in"]): {
                    "required": parameter.get("required", False),
                    "explode": parameter.get("explode", parameter["in"] == "query"),
                    "style": parameter.get("style"),
                    "schema": schema(document, parameter["schema"]),
                }
                for parameter in operation.get("parameters", [])
            },
            "body": {
                "required": operation.get("requestBody", {}).get("required"),
                "content": content(document, operation.get("requestBody", {})),
            },
            "answers": {
                status: {"content": content(document, answer), "headers": answer.get("headers")}
                for status, answer in operation["responses"].items()
            },
        }
        for path, method, operation in operations(document)
    }


@pytest.mark.parametrize("operation", [operation.id for operation in OPERATIONS])
def test_an_operation_is_the_contracts(contract: Json, ours: Json, operation: str) -> None:
    assert summary(ours)[operation] == summary(contract)[operation]


def test_no_operation_is_missing_and_none_is_invented(contract: Json, ours: Json) -> None:
    assert summary(ours).keys() == summary(contract).keys()
    assert len(summary(ours)) == len(list(operations(contract))) == 15


def test_tags_and_security_are_the_contracts(contract: Json, ours: Json) -> None:
    assert ours["openapi"] == contract["openapi"]
    assert ours["info"]["version"] == contract["info"]["version"]
    assert {tag["name"] for tag in ours["tags"]} == {tag["name"] for tag in contract["tags"]}
    [scheme], [stated] = (
        [{word: value for word, value in scheme.items() if word != "description"} for scheme in schemes.values()]
        for schemes in (part["components"]["securitySchemes"] for part in (ours, contract))
    )
    assert scheme == stated


def test_nothing_is_ever_null_and_answers_require_nothing(ours: Json) -> None:
    written = msgspec.json.encode(ours)
    assert b'"null"' not in written
    for operation in summary(ours).values():
        assert b'"required":[' not in msgspec.json.encode(
            [answer["content"] for answer in operation["answers"].values()]
        )
