"""Query parameters by the type of a struct: the same type reads them and describes them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from tcprepl.limits import MAX_TOKEN

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


class Unfit(ValueError):
    """A text that is not what its parameter takes."""


class Parameter(NamedTuple):
    """One parameter.

    Attributes:
        name: Its name in the query.
        type: The type of its values.
        kind: What `msgspec.inspect` says of that.
        required: Whether it has to be there.
    """

    name: str
    type: Any
    kind: inspect.Type
    required: bool

    @property
    def expectation(self) -> str:
        """What its value has to be, in words."""
        match self.kind:
            case inspect.IntType(ge=low, le=high):
                high = MAX_TOKEN if high is None else high
                return f"an integer from {0 if low is None else low} to {high}"
            case inspect.BoolType():
                return "1 or 0"
            case inspect.LiteralType(values=values):
                return " or ".join(map(str, values))
            case inspect.StrType(min_length=low, max_length=high):
                return f"{low or 0} to {high} characters"
            case _:
                raise TypeError(f"{self.name}: no parameter can be {self.kind}")

    def read(self, text: str) -> object:
        """Return the value that *text* is.

        Raises:
            Unfit: It is none.
        """
        value: object = text
        if isinstance(self.kind, inspect.IntType):
            value = int(text) if _INTEGER.fullmatch(text) else None
        elif isinstance(self.kind, inspect.BoolType):
            value = _FLAGS.get(text)
        if value is None:
            raise Unfit
        try:
            return msgspec.convert(value, self.type)
        except msgspec.ValidationError as error:
            raise Unfit from error


@cache
def parameters_of(type_: Any) -> tuple[Parameter, ...]:
    """Return the parameters that the fields of the struct *type_* are."""
    described = inspect.type_info(type_)
    assert isinstance(described, inspect.StructType)
    types = {field.name: field.type for field in msgspec.structs.fields(type_)}
    return tuple(
        Parameter(field.encode_name, types[field.name], _plain(field.type), field.required)
        for field in described.fields
    )


def _plain(kind: inspect.Type) -> inspect.Type:
    """Return *kind* without its description, and without the None of what may be left out."""
    if isinstance(kind, inspect.Metadata):
        return _plain(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _plain(next(t for t in kind.types if not isinstance(t, inspect.NoneType)))
    return kind
