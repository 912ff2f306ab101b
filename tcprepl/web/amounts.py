"""Counts, sizes and time spans, as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """Return a count with thin spaces between thousands; small fractions keep one place."""
    if value and abs(value) < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{value:,.0f}".replace(",", "\u202f")


def size(count: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f}\u202f{unit}" if unit == "B" else f"{count:.1f}\u202f{unit}"
        count /= 1000
    return f"{count:.1f}\u202fGB"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if seconds < 0.0005:
        return "0\u202fs"
    if seconds < 1:
        return f"{seconds * 1000:.0f}\u202fms"
    if seconds < 60:
        return f"{seconds:.1f}\u202fs" if seconds < 10 else f"{seconds:.0f}\u202fs"
    whole = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= length:
            return f"{whole // length}\u202f{unit} {whole % length // part}\u202f{smaller}"
    return f"{whole // 60}\u202fmin {whole % 60}\u202fs"
