"""Draw docs/an1-spectrum.svg and docs/an1-directions.svg from the record `an1.json`, without a plotting library.

    python -m studies.an1.plots docs benchmarks/records            # rewrite
    python -m studies.an1.plots docs benchmarks/records --check    # exit 1 when they differ

The same record gives the same bytes everywhere. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import click

from fieldrun.formats.storage import write_bytes

from .tables import an1_record

__all__ = ["main", "plots"]

_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a; }
.title { font-size: 13px; font-weight: 600; }
.grid { stroke: #8c959f; stroke-opacity: .3; }
.line { fill: none; stroke-width: 1.8; }
.even { stroke-dasharray: 5 4; stroke-width: 1.3; }
.s0 { stroke: #0969da; } .s1 { stroke: #bf5700; } .s2 { stroke: #1a7f37; } .s3 { stroke: #8250df; }
.d0 { fill: #0969da; } .d1 { fill: #bf5700; } .d2 { fill: #1a7f37; } .d3 { fill: #8250df; }
.depth { stroke: #0969da; }
@media (prefers-color-scheme: dark) {
text { fill: #9da7b3; }
.s0 { stroke: #58a6ff; } .s1 { stroke: #f0883e; } .s2 { stroke: #3fb950; } .s3 { stroke: #bc8cff; }
.d0 { fill: #58a6ff; } .d1 { fill: #f0883e; } .d2 { fill: #3fb950; } .d3 { fill: #bc8cff; }
.depth { stroke: #58a6ff; }
}
""".strip()
_WIDTH, _HEIGHT, _LEFT, _TOP = 250, 190, 46, 54  # of a panel's inside, and to its left and above it, px
_STEP_X, _STEP_Y = _WIDTH + 66, _HEIGHT + 84
_COLOURS = 4


class _Panel:
    """One pair of axes, the horizontal one logarithmic, in the cell (column, row) of the drawing."""

    def __init__(self, column: int, row: int, title: str, xs: Sequence[int], ys: tuple[float, float]) -> None:
        self.x0, self.y0 = _LEFT + column * _STEP_X, _TOP + row * _STEP_Y
        self.low, self.high = ys
        self.first, self.span = math.log(xs[0]), math.log(xs[-1] / xs[0]) or 1.0
        self.parts = [_text(self.x0, self.y0 - 10, title, "title")]
        for x in xs:
            px = self._x(x)
            self.parts.append(_segment(px, self.y0, px, self.y0 + _HEIGHT, "grid"))
            self.parts.append(_text(px, self.y0 + _HEIGHT + 15, str(x), anchor="middle"))
        step = next(s for s in (1, 2, 5, 10, 20, 25) if (self.high - self.low) / s <= 6)
        y = math.ceil(self.low / step) * step
        while y <= self.high:
            py = self._y(y)
            self.parts.append(_segment(self.x0, py, self.x0 + _WIDTH, py, "grid"))
            self.parts.append(_text(self.x0 - 6, py + 4, f"{y:g}", anchor="end"))
            y += step
        self.parts.append(_text(self.x0 + _WIDTH / 2, self.y0 + _HEIGHT + 31, "directions kept", anchor="middle"))

    def curve(self, points: Sequence[tuple[int, float]], style: str, opacity: float = 1.0) -> None:
        """Draw a line through (directions, per cent)."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="line {style}" stroke-opacity="{opacity:.2f}" points="{path}"/>')

    def level(self, y: float, style: str) -> None:
        """Draw a dashed line across at `y` per cent."""
        self.parts.append(_segment(self.x0, self._y(y), self.x0 + _WIDTH, self._y(y), f"line even {style}"))

    def dot(self, x: int, y: float, style: str) -> None:
        """Draw a dot at (directions, per cent)."""
        self.parts.append(f'<circle class="{style}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="4"/>')

    def _x(self, x: int) -> float:
        return self.x0 + _WIDTH * (math.log(x) - self.first) / self.span

    def _y(self, y: float) -> float:
        return self.y0 + _HEIGHT * (1 - (y - self.low) / (self.high - self.low))


def plots(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the two drawings by file name."""
    return {"an1-spectrum.svg": _spectrum(record), "an1-directions.svg": _directions(record)}


def _spectrum(record: Mapping[str, Any]) -> str:
    parts: list[str] = []
    forms = {"uncentred": "as they come", "centred": "centred", "standardised": "standardised"}
    for column, (name, teacher) in enumerate(record["teachers"].items()):
        layers = [layer for layer in teacher["spectra"] if layer != "whole"]
        for row, (form, label) in enumerate(forms.items()):
            ks = [k for k in (1, 3, 8, 32, 128, 384) if str(k) in teacher["spectra"][layers[0]][form]["share"]]
            panel = _Panel(column, row, f"{name}, {label}", ks, (0, 100))
            for depth, layer in enumerate(layers):
                shares = teacher["spectra"][layer][form]["share"]
                points = [(int(k), 100 * share) for k, share in shares.items() if int(k) <= ks[-1]]
                panel.curve(points, "depth", 0.2 + 0.8 * depth / max(1, len(layers) - 1))
            parts += panel.parts
    note = "Share of the variance, %, in the first directions of each layer: the darker the line, the deeper the layer."
    return _drawing(parts, len(record["teachers"]), len(forms), note, [])


def _directions(record: Mapping[str, Any]) -> str:
    teachers = record["teachers"]
    groups = {"single": "mean of the single tasks", "pair": "mean of the pair tasks"}
    groups = {g: label for g, label in groups.items() if g in next(iter(teachers.values()))["means"]["raw"]}
    parts: list[str] = []
    for column, (group, label) in enumerate(groups.items()):
        means = [{m: 100 * v[group]["accuracy"] for m, v in t["means"].items()} for t in teachers.values()]
        student = 100 * record["student"]["means"]["student"][group]["accuracy"]
        ks = [int(method[3:]) for method in means[0] if method.startswith("pca")]
        values = [student, *(value for mean in means for value in mean.values())]
        bounds = (5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5 + 0.01))
        panel = _Panel(column, 0, f"Accuracy, %, {label}", ks, bounds)
        for i, mean in enumerate(means):
            panel.level(mean["raw"], f"s{i % _COLOURS}")
            panel.curve([(k, mean[f"pca{k}"]) for k in ks], f"s{i % _COLOURS}")
            panel.dot(ks[-1], mean["field_head"], f"d{i % _COLOURS}")
        panel.level(student, f"s{_COLOURS - 1}")
        parts += panel.parts
    note = "Line: PCA + probe. Dashed: (a) raw field + probe. Dot: (d) AN1 field, head."
    return _drawing(parts, len(groups), 1, note, [*teachers, "student (e), dashed"])


def _drawing(parts: Sequence[str], columns: int, rows: int, note: str, legend: Sequence[str]) -> str:
    width, height = max(columns * _STEP_X, 640), rows * _STEP_Y + 22
    head = [_text(_LEFT - 36, 18, note)]
    for i, name in enumerate(legend):
        colour = _COLOURS - 1 if i == len(legend) - 1 else i % _COLOURS
        x, y = _LEFT - 36 + i * 150, height - 12
        head += [_segment(x, y - 4, x + 20, y - 4, f"line s{colour}"), _text(x + 26, y, name)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(note)}">',
        f"<style>\n{_STYLE}\n</style>",
        *head,
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    attribute = f' class="{style}"' if style else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("records", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when a drawing is not what the record says.")
def main(folder: Path, records: Path, check: bool) -> None:
    """Draw the plots on AN1 into FOLDER from RECORDS."""
    for name, text in plots(an1_record(records)).items():
        path, data = folder / name, text.encode("utf-8")
        if path.is_file() and path.read_bytes() == data:
            continue
        if check:
            click.echo(f"{path} differs from its record; run this without --check", err=True)
            sys.exit(1)
        write_bytes(path, data)


if __name__ == "__main__":
    main()
