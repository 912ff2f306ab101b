"""Pictures of numbers over time: plots with a scale, and sparklines without."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from twisted.web.template import Tag

from tcprepl.web.elements import element
from tcprepl.web.trends import Span

#: Size of a sparkline, and of a plot, in units of its own.
SPARK_SIZE = (120, 28)
PLOT_SIZE = (480, 120)
#: Points that a sparkline has room for.
SPARK_POINTS = 120
#: Seconds, of which half as many are round as well.
_TIMES = (60, 120, 240, 600, 1_200, 3_600, 7_200, 14_400, 43_200, 86_400)


def spark(values: Sequence[float], label: str, most: str, kind: str = "") -> Tag:
    """Return a line without a scale, the newest value at the right edge.

    Args:
        values: What is drawn.
        label: What it is, for those who do not see it.
        most: The highest of *values* in words.
        kind: A class of the element.
    """
    drawing = _drawing(values, max((*values, 1.0)), SPARK_POINTS, SPARK_SIZE)
    return _svg(drawing, SPARK_SIZE, f"spark {kind}", f"{label}, at most {most}")


def plot(
    title: str,
    values: Sequence[float],
    span: Span,
    words: Callable[[float], str],
    scaled: Callable[[float], float],
) -> Tag:
    """Return a line with a scale, of which the pointer and the arrow keys read single values.

    Args:
        title: What it is.
        values: What is drawn; the newest comes last.
        span: The time that it covers.
        words: Says a value.
        scaled: Gives the value that the whole height stands for, from the highest.
    """
    most = max(values, default=0.0)
    top = scaled(most)
    drawing = _drawing(values, top, span.points, PLOT_SIZE)
    half = PLOT_SIZE[1] // 2
    grid = element("path", d=f"M0 {half}H{PLOT_SIZE[0]}M0 1H{PLOT_SIZE[0]}", class_="grid")
    cursor = element("path", d="", class_="cursor")
    label = f"{title} in the last {span.title}, at most {words(most)}"
    return element(
        "figure",
        element(
            "figcaption", element("b", title), " ", element("output", f"at most {words(most)}")
        ),
        element(
            "div",
            element(
                "div",
                *(element("i", _rounded(words(top * n / 2))) for n in (2, 1, 0)),
                class_="scale",
            ),
            _svg([grid, *drawing, cursor], PLOT_SIZE, "plot", label),
            class_="field",
        ),
        element("div", element("i", f"{span.title} ago"), element("i", "now"), class_="times"),
        tabindex="0",
        **{
            "data-said": "|".join(words(value) for value in values),
            "data-points": str(span.points),
            "data-step": f"{span.step_s:g}",
        },
    )


def scale(most: float) -> float:
    """Return the next number from *most* on that is 1, 2 or 5 with zeros.

    It is at least 1, so that next to nothing looks so.
    """
    unit = 1.0
    while True:
        for digit in (1, 2, 5):
            if digit * unit >= most:
                return digit * unit
        unit *= 10


def time_scale(most: float) -> float:
    """Return the next number of seconds from *most* on by which people count."""
    if most <= 50:
        return scale(most)
    for step in _TIMES:
        if step >= most:
            return step
    return 86_400 * scale(most / 86_400)


def _rounded(said: str) -> str:
    """Return a time span without a second unit of which there is nothing."""
    return re.sub(" 0\u202f[a-z]+$", "", said)


def _drawing(
    values: Sequence[float], top: float, points: int, size: tuple[int, int]
) -> list[Tag | str | list[object]]:
    if len(values) < 2:
        return []
    width, height = size
    step = width / (points - 1)
    left = width - step * (len(values) - 1)
    line = " ".join(
        f"{left + index * step:.1f},{height - 1 - (height - 3) * value / top:.1f}"
        for index, value in enumerate(values)
    )
    area = f"{left:.1f},{height} {line} {width},{height}"
    return [element("polygon", points=area), element("polyline", points=line)]


def _svg(drawing: Sequence[object], size: tuple[int, int], class_: str, label: str) -> Tag:
    return element(
        "svg",
        *drawing,  # type: ignore[arg-type]
        class_=class_,
        viewBox=f"0 0 {size[0]} {size[1]}",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": label},
    )
