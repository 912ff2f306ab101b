"""Shapes of rows: what a type says of the values in it, and where a value does not fit.

msgspec says where by numbers; people are told by the names of the fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import msgspec.inspect
from msgspec import Struct, defstruct

#: Characters of an offending value that an error shows.
SNIPPET_CHARS = 64

_PATH = re.compile(r"^(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_SEGMENT = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[]+)")


def array_of(element: Any) -> type[Struct]:
    """Return the type of an array of one *element*."""
    return defstruct("_Array", [("element", element)], array_like=True, gc=False)


def is_closed(shape: msgspec.inspect.Type) -> bool:
    """Whether *shape* surely says of every value in it what it has to be.

    Raw JSON and `Any` do not, nor do numbers that may be infinite; tuples are in no row so far.
    """
    unsure = (
        msgspec.inspect.RawType,
        msgspec.inspect.AnyType,
        msgspec.inspect.FloatType,
        msgspec.inspect.TupleType,
    )
    if isinstance(shape, unsure):
        return False
    inner: list[msgspec.inspect.Type] = []
    if isinstance(shape, msgspec.inspect.StructType):
        inner = [field.type for field in shape.fields]
    elif isinstance(shape, msgspec.inspect.UnionType):
        inner = list(shape.types)
    elif isinstance(shape, msgspec.inspect.DictType):
        inner = [shape.key_type, shape.value_type]
    elif isinstance(shape, msgspec.inspect.CollectionType):
        inner = [shape.item_type]
    return all(map(is_closed, inner))


def structs_of(row_type: Any) -> tuple[type[Struct], ...]:
    """Return the structs of a row type: itself, or the members of a union."""
    members = get_args(row_type) or (row_type,)
    return tuple(t for t in members if isinstance(t, type) and issubclass(t, Struct))


def without_surplus(row_type: Any, value: Any) -> Any:
    """Return *value* without what follows the fields of its type, one level down too."""
    struct = _struct_for(row_type, value)
    if struct is None:
        return value
    fields = msgspec.structs.fields(struct)
    tagged = _is_tagged(struct)
    width = len(fields) + tagged
    cut = value[:width]
    if tagged and len(cut) == width:
        cut = [value[0], without_surplus(fields[0].type, value[1])]
    return cut if cut != value else value


def _is_tagged(struct: type[Struct]) -> bool:
    return struct.__struct_config__.tag is not None


def _struct_for(row_type: Any, value: Any) -> type[Struct] | None:
    """Return the array-like struct that *value* was meant to be, if that can be told."""
    if not isinstance(value, list):
        return None
    for struct in structs_of(row_type):
        if struct.__struct_config__.array_like and (
            not _is_tagged(struct) or (value and struct.__struct_config__.tag == value[0])
        ):
            return struct
    return None


def fault_in(row_type: Any, value: Any, error: msgspec.ValidationError) -> tuple[str, Any, str]:
    """Return the field of *value* that *error* is about, what stands there, what was expected."""
    match = _PATH.match(str(error))
    assert match is not None
    expected = match["text"].partition(", got")[0].removeprefix("Expected ").replace("`", "")
    field, found, wanted = _place(row_type, value, match["path"] or "", match["text"])
    if expected.startswith("Invalid enum value"):  # which says what was found
        expected = " or ".join(_words_of(wanted)) or "another value"
    return field, found, expected


def _words_of(wanted: Any) -> Iterator[str]:
    """Yield what a type with values of its own takes, as JSON and in words."""
    for one in get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,):
        if one is bool:
            yield "true or false"
        elif get_origin(one) is Literal:
            yield " or ".join(map(json.dumps, get_args(one)))
        elif one is str:
            yield "str"


def _place(row_type: Any, value: Any, path: str, text: str) -> tuple[str, Any, Any]:
    """Follow a path of msgspec's into a row.

    Returns:
        The path by field names, what stands there, and the type of what should; Any if unknown.
    """
    names: list[str] = []
    for match in _SEGMENT.finditer(path):
        number, key = match.groups()
        if key is not None:
            field = _field_type(row_type, key)
            names.append(f".{key}")
            value = value[key]
            row_type = field
        elif number == "...":
            index = _first_of_kind(value, text)
            names.append(f"[{json.dumps(index)}]")
            value = value[index]
            row_type = Any
        else:
            name, row_type = _element(row_type, value, int(number))
            names.append(name)
            value = value[int(number)]
    return "".join(names).removeprefix("."), value, row_type


def _element(row_type: Any, value: Any, index: int) -> tuple[str, Any]:
    struct = _struct_for(row_type, value)
    if struct is not None:
        field = msgspec.structs.fields(struct)[index - _is_tagged(struct)]
        return f".{field.name}", field.type
    if not index and any(map(_is_tagged, structs_of(row_type))):
        return ".type", Any
    return f"[{index}]", Any


def _field_type(row_type: Any, key: str) -> Any:
    fields = chain.from_iterable(map(msgspec.structs.fields, structs_of(row_type)))
    return next((field.type for field in fields if field.encode_name == key), Any)


#: What msgspec calls the kinds of JSON values.
_KINDS: dict[type, str] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    list: "array",
    dict: "object",
    type(None): "null",
}


def _first_of_kind(value: dict[str, Any], text: str) -> str:
    """Return the key of the first value of the kind that *text* complains of."""
    got = text.rpartition("got `")[2].rstrip("`")
    return next(
        (key for key, item in value.items() if _KINDS[type(item)] == got), next(iter(value))
    )


def shortened(text: str) -> str:
    """Return *text* as an error shows it: the beginning of it."""
    return text if len(text) <= SNIPPET_CHARS else text[:SNIPPET_CHARS] + "..."


def snippet(value: object) -> str:
    """Return *value* as an error shows it: as JSON, if it is anything that JSON has."""
    try:
        text = json.dumps(msgspec.to_builtins(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # a number of thousands of digits, or a cycle
            text = f"a {type(value).__name__} that cannot be shown"
    return shortened(text)
