"""The figures of docs/an1.md from the record `an1.json`: accuracy and variance by the number of directions kept."""

from __future__ import annotations

from fieldrun_benchmarks.report.canvas import INK, colour

from ..columns import Record
from ..drawing import style, svg, ticks
from .spectrum import FORMS
from .tables import STATES

__all__ = ["directions", "spectrum"]

_MARKS = (1, 3, 8, 32, 128, 384)
_KEPT = "directions kept"


def spectrum(record: Record) -> str:
    """Return the drawing of the variance in the first directions of each layer, one panel a teacher and form."""
    from matplotlib.figure import Figure

    teachers = record["teachers"]
    with style():
        figure = Figure(figsize=(3.2 * len(teachers), 2.6 * len(FORMS)), layout="constrained")
        panels = figure.subplots(len(FORMS), len(teachers), sharex=True, sharey=True, squeeze=False)
        for column, (name, teacher) in enumerate(teachers.items()):
            layers = [forms for layer, forms in teacher["spectra"].items() if layer != "whole"]
            for axes, form in zip(panels[:, column], FORMS, strict=True):
                for depth, forms in enumerate(layers):
                    shares = {int(k): 100 * share for k, share in forms[form]["share"].items() if int(k) <= _MARKS[-1]}
                    alpha = 1 - 0.8 * (len(layers) - 1 - depth) / max(1, len(layers) - 1)
                    axes.plot([*shares], [*shares.values()], color=colour(0), alpha=alpha)
                axes.set(xscale="log", ylim=(0, 102), title=f"{name}, {STATES[form]}")
                ticks(axes.xaxis, list(_MARKS))
        for axes in panels[-1]:
            axes.set_xlabel(_KEPT)
        for axes in panels[:, 0]:
            axes.set_ylabel("variance, %")
        title = "Share of the variance in the first directions of each layer: the darker the line, the deeper the layer"
        figure.suptitle(title, fontsize=10)
    return svg(figure, f"{title}.")


def directions(record: Record) -> str:
    """Return the drawing of accuracy by the number of principal components, beside the raw and the AN1 field."""
    from matplotlib.figure import Figure

    teachers, student = record["teachers"], record["student"]["means"]["student"]
    groups = {"single": "mean of the single tasks", "pair": "mean of the pair tasks"}
    groups = {group: label for group, label in groups.items() if group in student}
    with style():
        figure = Figure(figsize=(4.2 * len(groups), 3.9), layout="constrained")
        for axes, (group, label) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
            for i, (name, teacher) in enumerate(teachers.items()):
                means = {method: 100 * value[group]["accuracy"] for method, value in teacher["means"].items()}
                ks = [int(method[3:]) for method in means if method.startswith("pca")]
                pen = colour(i)
                axes.plot(ks, [means[f"pca{k}"] for k in ks], color=pen, label=f"{name}: PCA, probe")
                axes.axhline(means["raw"], color=pen, linestyle="--", linewidth=1.2)
                axes.plot([ks[-1]], [means["field_head"]], color=pen, marker="o")
            axes.axhline(100 * student[group]["accuracy"], color=INK, linestyle=":", label="student (e)")
            axes.set(xscale="log", title=label.capitalize(), xlabel=_KEPT)
            ticks(axes.xaxis, ks)
        figure.axes[0].set_ylabel("accuracy, %")
        figure.axes[0].plot([], [], color=INK, linestyle="--", linewidth=1.2, label="raw field (a), probe")
        figure.axes[0].plot([], [], color=INK, marker="o", linestyle="none", label="AN1 field (d), head")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return svg(figure, "Accuracy by the number of principal components kept, beside the raw field and the AN1 field.")
