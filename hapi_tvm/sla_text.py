"""An SLA as text, the way a command line or a settings file gives it."""

from __future__ import annotations

from dataclasses import fields

from hapi_tvm.errors import SLAError
from hapi_tvm.records import SLA

__all__ = ["parse_lines"]


def parse_lines(text: str) -> dict[str, float | int]:
    """Fields of ``SLA`` by name, from ``name=value`` pairs with commas between: "mean_latency_ms=0.4,max_exits=2".

    Raises SLAError for an unknown name, a name given twice and a value that is no number.
    """
    known = {field.name: int if field.type == "int" else float for field in fields(SLA)}
    lines: dict[str, float | int] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise SLAError(f"SLA: {part.strip()!r} is no line of an SLA; write name=value, such as mean_latency_ms=0.4")
        if name not in known:
            raise SLAError(f"SLA: there is no {name!r}; an SLA may have {', '.join(known)}")
        if name in lines:
            raise SLAError(f"SLA: {name} is given twice, {lines[name]} and {value}; give it once")
        try:
            lines[name] = known[name](value)
        except ValueError:
            raise SLAError(f"SLA: {name}={value!r} is no {'whole ' * (known[name] is int)}number") from None
    return lines
