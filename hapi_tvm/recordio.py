"""Records to bytes and back: JSON, or NPZ where a record has arrays.

A file is an envelope around one record::

    {"format": 1, "type": "Design", "run": "<whose>", "key": "<made from what>", "record": {...}}

In an NPZ the envelope is the member ``envelope.json``, and every array field is a member of its own.
JSON has no infinity and no NaN: a float field writes them as the strings "inf", "-inf" and "nan".
"""

from __future__ import annotations

import functools
import io
import json
import math
import pathlib
import types
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass

import numpy as np

from hapi_tvm.errors import HapiError, RecordError

__all__ = ["Envelope", "decode", "encode", "from_json", "pack", "read", "read_record", "suffix", "to_json"]

_FORMAT = 1
_MEMBER = "envelope.json"
_NEXT = "delete it, and the next build makes it again"
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_SCALARS = {
    float: (float, int, np.floating, np.integer),
    int: (int, np.integer),
    str: (str,),
    bool: (bool, np.bool_),
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A file as read: whose run it belongs to, the key of its inputs, and the record in pieces.

    type: name of the record's class. fields: JSON values. arrays: by field, empty for a JSON file.
    """

    type: str
    run: str
    key: str
    fields: Mapping[str, object]
    arrays: Mapping[str, np.ndarray]


def suffix(cls: type) -> str:
    """``.npz`` for a record class with array fields, else ``.json``."""
    return ".npz" if _array_fields(cls) else ".json"


def to_json(record: object) -> dict:
    """The record as JSON values. Raises RecordError naming a field that is not as declared."""
    name = type(record).__name__
    if arrays := _array_fields(type(record)):
        raise RecordError(f"{name} has arrays ({', '.join(arrays)}): use encode, not to_json")
    return _to_values(record, name)


def from_json(cls: type, values: object, where: str = ""):
    """The record of class ``cls`` that ``to_json`` turned into ``values``.

    where: what to call it in errors, a file name for example. Raises RecordError naming the field for
    unknown and missing fields, values of another type, and whatever the class itself refuses.
    """
    return _from_values(cls, values, where or cls.__name__, {})


def encode(record: object, run: str, key: str) -> bytes:
    """The record's file: JSON, or NPZ where ``suffix`` says so."""
    cls = type(record)
    arrays = {name: getattr(record, name) for name in _array_fields(cls)}
    return pack(Envelope(cls.__name__, run, key, _to_values(record, cls.__name__), arrays), npz=bool(arrays))


def pack(envelope: Envelope, npz: bool) -> bytes:
    """The file of an envelope; arrays need ``npz``. The same envelope gives the same bytes."""
    header = {
        "format": _FORMAT,
        "type": envelope.type,
        "run": envelope.run,
        "key": envelope.key,
        "record": envelope.fields,
    }
    text = json.dumps(header, indent=1, allow_nan=False) + "\n"
    if not npz:
        return text.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo(_MEMBER), text)
        for name, array in envelope.arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                raise RecordError(f"{envelope.type}.{name} is no array of numbers but {type(array).__name__}")
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getbuffer())
    return buffer.getvalue()


def read(path: pathlib.Path) -> Envelope:
    """The envelope in a file. Raises RecordError if it is no whole file of ours, OSError if unreadable."""
    data = path.read_bytes()
    try:
        text, arrays = _unzip(data) if path.suffix == ".npz" else (data, {})
        header = json.loads(text)
    # A damaged zip raises a dozen types, from BadZipFile to RuntimeError ("encrypted").
    except Exception as error:
        raise RecordError(f"{path} is broken ({type(error).__name__}: {error}); {_NEXT}") from None
    strings = ("type", "run", "key")
    whole = isinstance(header, dict) and set(header) == {"format", "record", *strings}
    if not (whole and header["format"] == _FORMAT and all(isinstance(header[name], str) for name in strings)):
        raise RecordError(f"{path} is no record of format {_FORMAT}; {_NEXT}")
    return Envelope(header["type"], header["run"], header["key"], header["record"], arrays)


def decode(cls: type, envelope: Envelope, where: str):
    """The record in ``envelope``. Raises RecordError as ``from_json`` does."""
    if envelope.type != cls.__name__:
        raise RecordError(f"{where}: holds a {envelope.type}, not a {cls.__name__}")
    return _from_values(cls, envelope.fields, where, envelope.arrays)


def read_record(path: pathlib.Path, cls: type):
    """The record of class ``cls`` in a file, whatever its run and key. Raises RecordError, or OSError."""
    return decode(cls, read(path), str(path))


def _unzip(data: bytes) -> tuple[bytes, dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        arrays = {}
        for name in file.namelist():
            if name != _MEMBER:
                member = io.BytesIO(file.read(name))
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
        return file.read(_MEMBER), arrays


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def _array_fields(cls: type) -> tuple[str, ...]:
    return tuple(name for name, hint in _hints(cls).items() if hint is np.ndarray)


def _to_values(record: object, where: str) -> dict:
    return {
        name: _to_value(hint, getattr(record, name), f"{where}.{name}")
        for name, hint in _hints(type(record)).items()
        if hint is not np.ndarray
    }


def _to_value(hint, value, where: str):
    hint = _without_none(hint, value)
    if value is None and hint is type(None):
        return None
    if hint in _SCALARS:
        _check_type(hint, value, where)
        plain = hint(value)
        return repr(plain) if hint is float and not math.isfinite(plain) else plain
    origin = typing.get_origin(hint)
    if is_dataclass(hint) and type(value) is hint:
        return _to_values(value, where)
    if origin is tuple and isinstance(value, tuple):
        item = typing.get_args(hint)[0]
        return [_to_value(item, part, f"{where}[{index}]") for index, part in enumerate(value)]
    if origin is Mapping and isinstance(value, Mapping):
        name, item = typing.get_args(hint)
        return {
            _to_value(name, key, f"{where} key"): _to_value(item, part, f"{where}[{key!r}]")
            for key, part in value.items()
        }
    raise RecordError(f"{where} = {value!r} is no {_name(hint)}")


def _from_values(cls: type, values: object, where: str, arrays: Mapping[str, np.ndarray]):
    if not isinstance(values, dict):
        raise RecordError(f"{where} = {values!r} is no {cls.__name__}")
    hints = _hints(cls)
    given = {**values, **arrays}
    if unknown := sorted(set(given) - set(hints)):
        raise RecordError(f"{where}: {cls.__name__} has no field {unknown[0]!r}")
    if missing := [name for name in hints if name not in given]:
        raise RecordError(f"{where}: {cls.__name__} lacks the field {missing[0]!r}")
    for name, hint in hints.items():
        if (hint is np.ndarray) != (name in arrays):
            raise RecordError(f"{where}.{name} is no {_name(hint)}")
    decoded = {
        name: given[name] if name in arrays else _from_value(hint, given[name], f"{where}.{name}")
        for name, hint in hints.items()
    }
    try:
        return cls(**decoded)
    except (HapiError, TypeError, ValueError, IndexError) as error:
        raise RecordError(f"{where}: {error}") from error


def _from_value(hint, value, where: str):
    hint = _without_none(hint, value)
    if value is None and hint is type(None):
        return None
    if hint in _SCALARS:
        if hint is float and isinstance(value, str) and value in _NOT_FINITE:
            return _NOT_FINITE[value]
        _check_type(hint, value, where)
        return hint(value)
    origin = typing.get_origin(hint)
    if is_dataclass(hint):
        return _from_values(hint, value, where, {})
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_from_value(item, part, f"{where}[{index}]") for index, part in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        item = typing.get_args(hint)[1]
        return {key: _from_value(item, part, f"{where}[{key!r}]") for key, part in value.items()}
    raise RecordError(f"{where} = {value!r} is no {_name(hint)}")


def _without_none(hint, value):
    """``T`` for ``T | None`` and a value, ``NoneType`` for ``T | None`` and None, else the hint itself."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    if value is None:
        return type(None)
    (inner,) = (part for part in typing.get_args(hint) if part is not type(None))
    return inner


def _check_type(hint: type, value, where: str) -> None:
    wrong_bool = hint is not bool and isinstance(value, bool | np.bool_)
    if wrong_bool or not isinstance(value, _SCALARS[hint]):
        raise RecordError(f"{where} = {value!r} is no {hint.__name__}")


def _name(hint) -> str:
    return getattr(hint, "__name__", str(hint))
