"""Figures as inline SVG: text stays text, colours are the page's, the same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bench.metrics import GLOSSARY
from bench.report.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, PAPER = "#010101", "#020202", "#fefefe"
SERIES = tuple(f"#0{number}0a0b" for number in range(1, 9))
NAMED = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    **{c: f"var(--series-{n})" for n, c in enumerate(SERIES, 1)},
}
"""Colours that stand for the page's own, light or dark."""
MARKERS = "os^DvPX*"
HATCHES = ("", "//", "\\\\", "xx", "--", "||", "++", "/", "x", "\\")
DASHES = ("-", "--", ":", "-.")
WIDTH, HEIGHT = 4.6, 3.1
"""Without the legend [inch]; at 72 dots about the width of a telephone."""
LEGEND_LINE = 0.2
"""[inch]"""
LONGEST = 44
"""Characters of a name in a legend."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "figure",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}


def svg(drawing: Drawing) -> str:
    """A figure as an `<svg>` element with title and description."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        matplotlib.rcParams.update(STYLE)
        draw = {"scatter": _scatter, "stack": _stack, "curve": _curve}[drawing.kind]
        names = _names(drawing)
        above = HEIGHT if drawing.kind != "stack" else 0.8 + 0.5 * len({line["arm"] for line in drawing.lines})
        title = 0.15 + 0.17 * len(_wrapped(drawing.y).split("\n")) if drawing.y else 0.05
        height = above + LEGEND_LINE * len(names) + 0.1
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.14, 1 - (above - 0.5) / height, 0.83, (above - 0.5 - title) / height))
        handles = draw(axes, drawing)
        # along the top, where a long one can be read
        figure.text(0.02, 1, _wrapped(drawing.y), ha="left", va="top")
        labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.02, 0), borderaxespad=0.1)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), drawing)


def _names(drawing: Drawing) -> list[str]:
    if drawing.arms:
        return list(dict.fromkeys(drawing.arms.values()))
    key = "component" if drawing.kind == "stack" else "arm"
    return list(dict.fromkeys(str(line[key]) for line in drawing.lines))


def _inline(text: str, drawing: Drawing) -> str:
    """The bare element, its ids unique on the page, its colours the page's own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9-]+", lambda found: f"_{found.group().encode().hex()}_", drawing.name)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}-", text)
    for colour, name in NAMED.items():
        text = text.replace(colour, name)
    text = text.replace("font-family: 'DejaVu Sans', sans-serif; ", "")  # the page's own
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    size = re.search(r'width="([0-9.]+)pt"', head)
    assert size
    return (
        f'<svg {box.group()} style="max-width: {float(size.group(1)) * 4 / 3:.0f}px" role="img" '
        f'aria-labelledby="{prefix}-title {prefix}-words" xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        f'<title id="{prefix}-title">{escape(f"{drawing.title}, {drawing.subject}")}</title>\n'
        f'<desc id="{prefix}-words">{escape(drawing.words)}</desc>{body}'
    )


def _scatter(axes: Axes, drawing: Drawing) -> list[Any]:
    """Draw the arms; returns one mark per arm for the legend."""
    across, up = (drawing.columns[place] for place in (1, 4))
    marks = []
    for number, line in enumerate(drawing.lines):
        colour = SERIES[number % len(SERIES)]
        mark = axes.errorbar(
            line[across],
            line[up],
            xerr=_arms(line, across),
            yerr=_arms(line, up),
            # a second round of colours comes with other marks: no two of 64 arms look alike
            fmt=MARKERS[(number + number // len(SERIES)) % len(MARKERS)],
            color=colour,
            markeredgecolor=INK,
            markersize=8,
            capsize=3,
            linewidth=1.2,
        )
        marks.append(mark)
    front = sorted((line for line in drawing.lines if line["on_front"]), key=lambda line: float(line[across]))
    axes.plot([p[across] for p in front], [p[up] for p in front], ":", color=FAINT, linewidth=1, zorder=0)
    axes.axvline(1 if GLOSSARY[across].relative else 0, color=FAINT, linewidth=0.4)
    axes.axhline(1 if GLOSSARY[up].relative else 0, color=FAINT, linewidth=0.4)
    axes.margins(0.15)
    axes.set_xlabel(_wrapped(drawing.x))
    return marks


def _arms(line: Mapping[str, Any], name: str) -> list[list[float]] | None:
    """Lengths of an error bar to both sides; intervals need not be even."""
    low, high = line.get(f"{name}_low"), line.get(f"{name}_high")
    if low is None or high is None:
        return None
    return [[max(line[name] - low, 0.0)], [max(high - line[name], 0.0)]]


def _stack(axes: Axes, drawing: Drawing) -> list[Any]:
    """Draw the bars; returns one mark per component for the legend."""
    arms = list(dict.fromkeys(str(line["arm"]) for line in drawing.lines))
    left = dict.fromkeys(arms, 0.0)
    unit, size = ("GB", 1e9) if max(line["peak_bytes"] for line in drawing.lines) >= 1e9 else ("MB", 1e6)
    marks = []
    for number, component in enumerate(_names(drawing)):
        mine = [line for line in drawing.lines if line["component"] == component]
        mark = axes.barh(
            [arms.index(str(line["arm"])) for line in mine],
            [line["bytes"] / size for line in mine],
            left=[left[str(line["arm"])] for line in mine],
            height=0.45,
            color=SERIES[number % len(SERIES)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor=INK,
            linewidth=0.6,
        )
        marks.append(mark)
        for line in mine:
            left[str(line["arm"])] += line["bytes"] / size
    for place, arm in enumerate(arms):
        peak = next(line["peak_bytes"] for line in drawing.lines if line["arm"] == arm) / size
        axes.text(0, place - 0.28, f"{arm}: {peak:.3g} {unit}", ha="left", va="bottom")
    axes.set_ylim(len(arms) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(drawing.x.replace("bytes", unit))
    return marks


def _curve(axes: Axes, drawing: Drawing) -> list[Any]:
    """Draw the curves; returns one mark per arm for the legend."""
    across, up = drawing.columns[1:3]
    marks: dict[str, Any] = {}
    places = {name: place for place, name in enumerate(_names(drawing))}
    for curve, arm in drawing.arms.items():
        points = [line for line in drawing.lines if line["arm"] == curve and line[up] is not None]
        number = places[arm]
        colour = SERIES[number % len(SERIES)]
        one_seed = curve != arm and arm in drawing.arms  # beside the mean of all
        (mark,) = axes.plot(
            [point[across] for point in points],
            [point[up] for point in points],
            linestyle=DASHES[number % len(DASHES)],
            marker="" if one_seed else MARKERS[(number + number // len(SERIES)) % len(MARKERS)],
            markevery=max(1, len(points) // 8),
            markersize=5,
            color=colour,
            linewidth=0.5 if one_seed else 1.4,
        )
        marks.setdefault(arm, mark)
    limits = [_limits(drawing.lines, name) for name in (across, up)]
    for line in drawing.lines if len(drawing.columns) > 3 else ():
        if line[up] is not None and line["arm"] in drawing.arms:
            axes.errorbar(
                line[across],
                line[up],
                xerr=_arms(line, across),
                yerr=_arms(line, up),
                color=SERIES[places[drawing.arms[str(line["arm"])]] % len(SERIES)],
                elinewidth=0.6,
            )
    if len(drawing.columns) > 3:
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
    axes.set_xlabel(drawing.x)
    return list(marks.values())


def _limits(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Ends of an axis: all points, and of their bars as much as leaves the points half of the figure."""
    values = [line[name] for line in lines if line[name] is not None]
    lows = [line[f"{name}_low"] for line in lines if line.get(f"{name}_low") is not None]
    highs = [line[f"{name}_high"] for line in lines if line.get(f"{name}_high") is not None]
    low, high = min(values), max(values)
    room = (high - low) / 2 or abs(high) or 1.0
    low, high = max(min([*lows, low]), low - room), min(max([*highs, high]), high + room)
    edge = 0.05 * (high - low) or 0.05 * room
    return low - edge, high + edge


def _wrapped(title: str) -> str:
    """An axis' title on two lines."""
    name, _, rest = title.partition(", ")
    return f"{name}\n{rest}" if rest else name
