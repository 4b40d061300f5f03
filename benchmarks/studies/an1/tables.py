"""Render the blocks of docs/an1.md, and the model card's lines on AN1, from the record `an1.json`.

The blocks are tables of `studies.tables`, which rewrites or checks the page. Verdicts compare intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldrun_benchmarks.harness.record import read_record

from .spectrum import FORMS, SHARES

__all__ = ["TABLES", "an1_record", "card_lines"]

Record = Mapping[str, Any]

_METHODS = {
    "raw": "(a) raw field, probe",
    "sentence": "(b) sentence vector, probe",
    "pca256": "(c) PCA-256, probe",
    "field_head": "(d) AN1 field, head",
    "field_probe": "(d) AN1 field, probe",
    "student": "(e) student",
}
_GROUPS = {"single": "mean of the single tasks", "pair": "mean of the pair tasks", "all": "mean of all tasks"}
_MARKS = ("1", "3", "8", "32", "128")
_FORMS = dict(zip(FORMS, ("as they come", "centred", "standardised"), strict=True))
_SMALLER = "a gain, but smaller than claimed"
_VARIANCE, _GAIN, _GAIN_RTE, _LOSS, _LOSS_TABLE = 72, 1.81, 3.25, 0.35, 0.81  # what AN1 claims; per cent and points


def an1_record(records: Path) -> Record:
    """Read `an1.json` in the folder `records`; `FieldrunError` when it is missing or of another kind."""
    return read_record(records / "an1.json", "an1")


def card_lines(record: Record) -> list[str]:
    """Return the Markdown lines of a model card: means over tasks per teacher and method, and the first directions."""
    names = list(record["teachers"])
    lines = [f"| Mean accuracy, %: single tasks, all | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method, label in _METHODS.items():
        cells = []
        for name in names:
            means = _means(record, name)[method]
            cells.append(f"{100 * means['single']['accuracy']:.1f}, {100 * means['all']['accuracy']:.1f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for form in FORMS[1:]:
        cells = [_range([100 * s for s in _first(record["teachers"][name], form, "3")]) for name in names]
        lines.append(f"| variance in the first 3 directions of a layer, {_FORMS[form]}, % | {' | '.join(cells)} |")
    return [*lines, "", "Every task with intervals, spectra and plots, and which of AN1's claims hold: `docs/an1.md`."]


def _accuracy(record: Record) -> str:
    lines = []
    for name in record["teachers"]:
        tasks, means = _tasks(record, name), _means(record, name)
        lines += [f"**{name}**", "", f"| Task | n | majority | {' | '.join(_METHODS.values())} |"]
        lines.append("|---" * (len(_METHODS) + 3) + "|")
        for task, about in record["tasks"].items():
            cells = " | ".join(_percent(tasks[method][task]) for method in _METHODS)
            lines.append(f"| {task} | {about['report']:,} | {100 * about['majority']:.1f} | {cells} |")
        for group, label in _GROUPS.items():
            if group in means["raw"]:
                cells = " | ".join(_percent(means[method][group]) for method in _METHODS)
                lines.append(f"| {label} | | | {cells} |")
        lines.append("")
    return "\n".join(lines[:-1])


def _runs(record: Record) -> str:
    lines = [f"| Teacher | AN1 field | {' | '.join(record['tasks'])} |", "|---" * (len(record["tasks"]) + 2) + "|"]
    for name, teacher in record["teachers"].items():
        for method, label in (("field_head", "head"), ("field_probe", "probe")):
            entries = teacher["tasks"][method].values()
            cells = [" / ".join(f"{100 * x:.1f}" for x in e.get("runs", [e["accuracy"]])) for e in entries]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(record: Record) -> str:
    groups = {group: label for group, label in _GROUPS.items() if group in _means(record)["raw"]}
    lines = [f"| Teacher | Difference | {' | '.join(groups.values())} |", "|---" * (len(groups) + 2) + "|"]
    for name, teacher in record["teachers"].items():
        for pair, entry in teacher["differences"].items():
            first, second = (_METHODS[method] for method in pair.split(" - "))
            lines.append(f"| {name} | {first} minus {second} | {' | '.join(_points(entry[g]) for g in groups)} |")
    return "\n".join(lines)


def _directions(record: Record) -> str:
    groups = [group for group in _GROUPS if group in _means(record)["raw"]]
    ks = [method for method in next(iter(record["teachers"].values()))["means"] if method.startswith("pca")]
    lines = [f"| Teacher | | {' | '.join('k = ' + k[3:] for k in ks)} | {_METHODS['raw']} |"]
    lines.append("|---" * (len(ks) + 3) + "|")
    for name in record["teachers"]:
        for group in groups:
            cells = [_percent(_means(record, name)[method][group]) for method in (*ks, "raw")]
            lines.append(f"| {name} | {_GROUPS[group]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spectrum(record: Record) -> str:
    heads = [*(f"first {k}" for k in _MARKS), *(f"{share} %" for share in SHARES)]
    lines = []
    for name, teacher in record["teachers"].items():
        lines += [f"**{name}**", "", f"| Layer | States | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
        for layer, forms in teacher["spectra"].items():
            for form, values in forms.items():
                cells = [f"{100 * values['share'][k]:.1f}" if k in values["share"] else "" for k in _MARKS]
                cells += [str(values["directions"][str(share)]) for share in SHARES]
                lines.append(f"| {layer} | {_FORMS[form]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def _cost(record: Record) -> str:
    lines = []
    for name, teacher in record["teachers"].items():
        stages = ", ".join(f"{stage} {seconds:,.0f} s" for stage, seconds in teacher["seconds"].items())
        lines.append(f"- {name} ({teacher['arithmetic']}): {stages}.")
    about = record["conditions"]
    where = f"{about['cores_allowed']} cores of {about['processor']}, GPU: {record['gpu'] or 'none'}"
    libraries = ", ".join(f"{package} {number}" for package, number in record["libraries"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"({about['date']}, {where}, Python {about['python']}, {libraries}, recipe `{record['recipe']}`, "
            f"{record['texts']['train']:,} train texts, AN1 seeds {', '.join(map(str, record['seeds']))}; the student "
            f"is the bundle `{record['student']['name']}`, recipe `{record['student']['recipe']}`, weights sha256 "
            f"{record['student']['weights_sha256'][:16]}...)",
        ]
    )


def _claims(record: Record) -> str:
    teachers: Mapping[str, Any] = record["teachers"]
    differences = {name: teacher["differences"] for name, teacher in teachers.items()}
    lines = [f'**"72 - 99 % of the variance lies in the top 1 - 3 directions, per layer."** {_agreed(record)}', ""]
    lines += [f"- {name}: {_variance(teacher)}" for name, teacher in teachers.items()]
    lines += ["", f'**"The 256-d field beats the teacher\'s probe by {_GAIN} points, on average over 8 tasks."**', ""]
    for name, found in differences.items():
        raw, sentence = found["field_head - raw"]["all"], found["field_head - sentence"]["all"]
        lines.append(
            f"- {name}: against the tuned probe on the raw field (a) {_points(raw)} points, {_gain(raw, _GAIN)}; "
            f"against the probe on the usual sentence vector (b) {_points(sentence)}, {_gain(sentence, _GAIN)}."
        )
    lines += ["", "**A control that AN1 does not have: is training the compressor worth more than PCA-256?**", ""]
    for name, found in differences.items():
        entry = found["field_head - pca256"]["all"]
        lines.append(f"- {name}: AN1 field minus PCA-256 with the probe {_points(entry)} points, {_sign(entry)}.")
    if "rte" in record["tasks"]:
        lines += ["", f'**"RTE gains {_GAIN_RTE} points."** ({record["tasks"]["rte"]["report"]} rows)', ""]
        for name, found in differences.items():
            entry = found["field_head - raw"]["tasks"]["rte"]
            lines.append(f"- {name}: {_points(entry)} points against (a), {_gain(entry, _GAIN_RTE)}.")
    if "sst2" in record["tasks"]:
        claim = f"The student loses {_LOSS} points on SST-2."
        lines += ["", f'**"{claim}"** (by AN1\'s own table, 91.40 to 90.59, it loses {_LOSS_TABLE})', ""]
        for name, found in differences.items():
            lines.append(
                f"- against the AN1 field of {name}: {_student_loss(found, record['tasks']['sst2']['report'])}"
            )
    lines += [
        "",
        '**"A compression of 224x."** That is 57,344 / 256, one pooled vector and not a model. Here it is:',
        "",
    ]
    for name, teacher in teachers.items():
        width = teacher["hidden"] * len(teacher["layers"])
        lines.append(f"- {name}: {width:,} / 256 = {width / 256:.1f}.")
    return "\n".join(lines)


def _agreed(record: Record) -> str:
    found = [_enough(teacher, form) for form in FORMS[1:] for teacher in record["teachers"].values()]
    if all(held == layers for held, layers in found):
        return "Holds, also after centring and standardising."
    if all(held == 0 for held, _ in found):
        return "Does not hold for any layer once the states are centred or standardised."
    return "Holds for some layers only; the share of an uncentred state's first direction is mostly its mean."


def _variance(teacher: Mapping[str, Any]) -> str:
    parts = []
    for form, label in _FORMS.items():
        held, layers = _enough(teacher, form)
        one, three = (_range([100 * s for s in _first(teacher, form, k)]) for k in ("1", "3"))
        parts.append(
            f"{label}, the first direction has {one} % and the first three {three} %, {_VARIANCE} % or more in {held} "
            f"of {layers} layers"
        )
    return "; ".join(parts) + "."


def _enough(teacher: Mapping[str, Any], form: str) -> tuple[int, int]:
    shares = _first(teacher, form, "3")
    return sum(100 * share >= _VARIANCE for share in shares), len(shares)


def _first(teacher: Mapping[str, Any], form: str, k: str) -> list[float]:
    return [forms[form]["share"][k] for layer, forms in teacher["spectra"].items() if layer != "whole"]


def _gain(entry: Mapping[str, Any], claimed: float) -> str:
    low, high = (100 * x for x in entry["ci95"])
    if low > 0:
        return f"the claim holds: a gain, and {claimed} is not too much" if high >= claimed else _SMALLER
    if high < 0:
        return "the claim does not hold: it is a loss"
    return f"no gain is shown, and one of {claimed} is {'ruled out' if high < claimed else 'not ruled out either'}"


def _sign(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    return "yes" if low > 0 else "no, it is worth less" if high < 0 else "not shown: the interval holds 0"


def _student_loss(found: Mapping[str, Any], n: int) -> str:
    entry = found["student - field_head"]["tasks"]["sst2"]
    low, high = (100 * x for x in entry["ci95"])
    if low >= -_LOSS:
        verdict = "the claim holds"
    elif high < -_LOSS:
        own = "even the loss of AN1's own table is exceeded" if high < -_LOSS_TABLE else "it loses more"
        verdict = f"the claim does not hold: {own}"
    else:
        verdict = f"{n:,} rows cannot tell"
    raw = found["student - raw"]
    return (
        f"{_points(entry)} points, {verdict}; against (a) {_points(raw['tasks']['sst2'])} on SST-2, "
        f"{_points(raw['single'])} over the single tasks and {_points(raw['all'])} over all."
    )


def _tasks(record: Record, name: str) -> dict[str, Any]:
    return {**record["teachers"][name]["tasks"], **record["student"]["tasks"]}


def _means(record: Record, name: str | None = None) -> dict[str, Any]:
    return {**record["teachers"][name or next(iter(record["teachers"]))]["means"], **record["student"]["means"]}


def _percent(entry: Mapping[str, Any]) -> str:
    low, high = (100 * x for x in entry["ci95"])
    return f"{100 * entry['accuracy']:.1f} ({low:.1f} - {high:.1f})"


def _points(entry: Mapping[str, Any]) -> str:
    low, high = (100 * x for x in entry["ci95"])
    return f"{100 * entry['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _range(values: list[float]) -> str:
    return f"{min(values):.0f} - {max(values):.0f}"


def _table(render: Callable[[Record], str]) -> Callable[[Path], str]:
    return lambda records: render(an1_record(records))


TABLES: dict[str, Callable[[Path], str]] = {
    "an1-accuracy": _table(_accuracy),
    "an1-claims": _table(_claims),
    "an1-cost": _table(_cost),
    "an1-differences": _table(_differences),
    "an1-directions": _table(_directions),
    "an1-runs": _table(_runs),
    "an1-spectrum": _table(_spectrum),
}
