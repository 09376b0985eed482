"""The contract's models to the letter: no field is null, and every time says its offset.

The models themselves are kinder, for what comes from elsewhere: to them a null is a field that is missing.
"""

import datetime as dt
import functools
import types
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec


@functools.cache
def as_asked(model: Any, *, forbid_unknown_fields: bool = False) -> Any:
    """What a request may hold: the fields that the model requires, the others or none of them, no null."""
    return _exact(model, "InRequest", True, forbid_unknown_fields)


@functools.cache
def as_answered(model: Any) -> Any:
    """What an answer may hold: any of the fields, no null. The contract requires nothing in answers."""
    return _exact(model, "", False, False)


def _exact(kind: Any, suffix: str, requires: bool, forbids: bool) -> Any:
    def inner(kind: Any) -> Any:
        return _exact(kind, suffix, requires, forbids)

    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return msgspec.defstruct(
            kind.__name__ + suffix,
            [
                (field.name, inner(field.type))
                if field.required and requires
                else (field.name, Union[inner(field.type), msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007 - a value
                for field in fields
            ],
            rename={field.name: field.encode_name for field in fields},
            namespace={"__doc__": kind.__doc__},
            forbid_unknown_fields=forbids,
            kw_only=True,
        )
    if get_origin(kind) in {Union, types.UnionType}:
        members = tuple(inner(member) for member in get_args(kind) if member is not types.NoneType)
        return Union[members]  # noqa: UP007 - a value
    if get_origin(kind) is Annotated:
        return Annotated[(inner(get_args(kind)[0]), *kind.__metadata__)]
    if get_origin(kind) is list:
        return list[inner(get_args(kind)[0])]  # type: ignore[misc]  # a value
    return Annotated[kind, msgspec.Meta(tz=True)] if kind is dt.datetime else kind
