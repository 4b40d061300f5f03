"""Blocks of docs/an1.md and the model card's lines on AN1 from the record `an1.json`; verdicts compare intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun_benchmarks.harness.record import read_record

from ..columns import Block, Column, Part, Record, Table, accuracy, block, change, percent, slashed
from .spectrum import FORMS, SHARES

__all__ = ["BLOCKS", "STATES", "an1_record", "card_lines"]

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
STATES = dict(zip(FORMS, ("as they come", "centred", "standardised"), strict=True))
_SMALLER = "a gain, but smaller than claimed"
_VARIANCE, _GAIN, _GAIN_RTE, _LOSS, _LOSS_TABLE = 72, 1.81, 3.25, 0.35, 0.81  # what AN1 claims; per cent and points
_TEACHER = Column("Teacher", "teacher")


def an1_record(records: Path) -> Record:
    """Read `an1.json` in the folder `records`; `FieldrunError` when it is missing or of another kind."""
    return read_record(records / "an1.json", "an1")


def card_lines(record: Record) -> list[str]:
    """Return the Markdown lines of a model card: means over tasks per teacher and method, and the first directions."""
    teachers = record["teachers"]

    def mean(method: str, name: str) -> str:
        means = _means(record, name)[method]
        return f"{percent(means['single']['accuracy'])}, {percent(means['all']['accuracy'])}"

    def directions(form: str, name: str) -> str:
        return _range([100 * s for s in _first(teachers[name], form, "3")])

    rows = [(label, {name: mean(method, name) for name in teachers}) for method, label in _METHODS.items()]
    rows += [
        (
            f"variance in the first 3 directions of a layer, {STATES[form]}, %",
            {name: directions(form, name) for name in teachers},
        )
        for form in FORMS[1:]
    ]
    columns = [Column("Mean accuracy, %: single tasks, all", lambda row: row[0])]
    columns += [Column(name, lambda row, name=name: row[1][name]) for name in teachers]  # type: ignore[misc]
    return [
        *Table(columns, rows).markdown().split("\n"),
        "",
        "Every task with intervals, spectra and plots, and which of AN1's claims hold: `docs/an1.md`.",
    ]


def _groups(record: Record) -> list[str]:
    return [group for group in _GROUPS if group in _means(record)["raw"]]


def _accuracies(record: Record) -> Sequence[Part]:
    parts: list[Part] = []
    for name in record["teachers"]:
        tasks, means = _tasks(record, name), _means(record, name)
        rows = [
            {"task": task, **about, "methods": {m: tasks[m][task] for m in _METHODS}}
            for task, about in record["tasks"].items()
        ]
        columns = [
            Column("Task", "task"),
            Column("n", "report", "{:,}"),
            Column("majority", "majority", percent),
            *(Column(label, f"methods.{m}", accuracy) for m, label in _METHODS.items() if m != "student"),
            Column(
                _METHODS["student"],
                "methods.student",
                accuracy,
                claim=lambda row: (
                    "accuracy",
                    record["student"]["weights_sha256"],
                    f"{row['task']}, n = {row['report']}",
                ),
            ),
        ]
        below = [[_GROUPS[g], "", "", *(accuracy(means[m][g]) for m in _METHODS)] for g in _groups(record)]
        parts += [f"**{name}**", Table(columns, rows, below)]
    return parts


def _runs(record: Record) -> Sequence[Part]:
    rows = [
        {"teacher": name, "shown": label, "tasks": teacher["tasks"][method]}
        for name, teacher in record["teachers"].items()
        for method, label in (("field_head", "head"), ("field_probe", "probe"))
    ]

    def each(entry: Record) -> str:
        return slashed([percent(x) for x in entry.get("runs", [entry["accuracy"]])])

    tasks = (Column(task, f"tasks.{task}", each) for task in record["tasks"])
    return [Table([_TEACHER, Column("AN1 field", "shown"), *tasks], rows)]


def _differences(record: Record) -> Sequence[Part]:
    rows = [
        {**entry, "teacher": name, "shown": " minus ".join(_METHODS[method] for method in pair.split(" - "))}
        for name, teacher in record["teachers"].items()
        for pair, entry in teacher["differences"].items()
    ]
    groups = (Column(_GROUPS[group], group, change) for group in _groups(record))
    return [Table([_TEACHER, Column("Difference", "shown"), *groups], rows)]


def _directions(record: Record) -> Sequence[Part]:
    kept = [method for method in next(iter(record["teachers"].values()))["means"] if method.startswith("pca")]
    titles = {method: f"k = {method[3:]}" for method in kept} | {"raw": _METHODS["raw"]}
    rows = [
        {"teacher": name, "group": _GROUPS[group], **{m: _means(record, name)[m][group] for m in titles}}
        for name in record["teachers"]
        for group in _groups(record)
    ]
    columns = (Column(title, method, accuracy) for method, title in titles.items())
    return [Table([_TEACHER, Column("", "group"), *columns], rows)]


_SPECTRUM = (
    Column("Layer", "layer"),
    Column("States", "form", lambda form: STATES[form]),
    *(Column(f"first {k}", f"share.{k}", percent, missing="") for k in _MARKS),
    *(Column(f"{share} %", f"directions.{share}") for share in SHARES),
)


def _spectrum(record: Record) -> Sequence[Part]:
    parts: list[Part] = []
    for name, teacher in record["teachers"].items():
        rows = [
            {**values, "layer": layer, "form": form}
            for layer, forms in teacher["spectra"].items()
            for form, values in forms.items()
        ]
        parts += [f"**{name}**", Table(_SPECTRUM, rows)]
    return parts


def _cost(record: Record) -> Sequence[Part]:
    lines = []
    for name, teacher in record["teachers"].items():
        stages = ", ".join(f"{stage} {took:,.0f} s" for stage, took in teacher["seconds"].items())
        lines.append(f"- {name} ({teacher['arithmetic']}): {stages}.")
    about, student = record["conditions"], record["student"]
    libraries = ", ".join(f"{package} {number}" for package, number in record["libraries"].items())
    return [
        "\n".join(lines),
        f"({about['date']}, {about['cores_allowed']} cores of {about['processor']}, GPU: {record['gpu'] or 'none'}, "
        f"Python {about['python']}, {libraries}, recipe `{record['recipe']}`, {record['texts']['train']:,} train "
        f"texts, AN1 seeds {', '.join(map(str, record['seeds']))}; the student is the bundle `{student['name']}`, "
        f"recipe `{student['recipe']}`, weights sha256 {student['weights_sha256'][:16]}...)",
    ]


def _claims(record: Record) -> Sequence[Part]:
    teachers: Mapping[str, Any] = record["teachers"]
    differences = {name: teacher["differences"] for name, teacher in teachers.items()}
    lines = [f'**"72 - 99 % of the variance lies in the top 1 - 3 directions, per layer."** {_agreed(record)}', ""]
    lines += [f"- {name}: {_variance(teacher)}" for name, teacher in teachers.items()]
    lines += ["", f'**"The 256-d field beats the teacher\'s probe by {_GAIN} points, on average over 8 tasks."**', ""]
    for name, found in differences.items():
        raw, sentence = found["field_head - raw"]["all"], found["field_head - sentence"]["all"]
        lines.append(
            f"- {name}: against the tuned probe on the raw field (a) {change(raw)} points, {_gain(raw, _GAIN)}; "
            f"against the probe on the usual sentence vector (b) {change(sentence)}, {_gain(sentence, _GAIN)}."
        )
    lines += ["", "**A control that AN1 does not have: is training the compressor worth more than PCA-256?**", ""]
    for name, found in differences.items():
        entry = found["field_head - pca256"]["all"]
        lines.append(f"- {name}: AN1 field minus PCA-256 with the probe {change(entry)} points, {_sign(entry)}.")
    if "rte" in record["tasks"]:
        lines += ["", f'**"RTE gains {_GAIN_RTE} points."** ({record["tasks"]["rte"]["report"]} rows)', ""]
        for name, found in differences.items():
            entry = found["field_head - raw"]["tasks"]["rte"]
            lines.append(f"- {name}: {change(entry)} points against (a), {_gain(entry, _GAIN_RTE)}.")
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
    return ["\n".join(lines)]


def _agreed(record: Record) -> str:
    found = [_enough(teacher, form) for form in FORMS[1:] for teacher in record["teachers"].values()]
    if all(held == layers for held, layers in found):
        return "Holds, also after centring and standardising."
    if all(held == 0 for held, _ in found):
        return "Does not hold for any layer once the states are centred or standardised."
    return "Holds for some layers only; the share of an uncentred state's first direction is mostly its mean."


def _variance(teacher: Mapping[str, Any]) -> str:
    parts = []
    for form, label in STATES.items():
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
        f"{change(entry)} points, {verdict}; against (a) {change(raw['tasks']['sst2'])} on SST-2, "
        f"{change(raw['single'])} over the single tasks and {change(raw['all'])} over all."
    )


def _tasks(record: Record, name: str) -> dict[str, Any]:
    return {**record["teachers"][name]["tasks"], **record["student"]["tasks"]}


def _means(record: Record, name: str | None = None) -> dict[str, Any]:
    return {**record["teachers"][name or next(iter(record["teachers"]))]["means"], **record["student"]["means"]}


def _range(values: list[float]) -> str:
    return f"{min(values):.0f} - {max(values):.0f}"


BLOCKS: dict[str, Block] = {
    "an1-accuracy": block(_accuracies, "an1"),
    "an1-claims": block(_claims, "an1"),
    "an1-cost": block(_cost, "an1"),
    "an1-differences": block(_differences, "an1"),
    "an1-directions": block(_directions, "an1"),
    "an1-runs": block(_runs, "an1"),
    "an1-spectrum": block(_spectrum, "an1"),
}
