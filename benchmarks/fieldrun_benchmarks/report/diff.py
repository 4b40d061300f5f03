"""Two benches of the same subjects, before and after: what became slower, larger or less accurate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from fieldrun.errors import UsageError
from fieldrun.evaluation.metrics import wilson_interval

from ..harness.percentiles import ratio_interval
from .metrics import Metric, machine_of, metrics_of
from .table import UNITS, Record, find, shown, table

__all__ = ["Change", "Diff", "diff", "diff_all"]

Subject: TypeAlias = Mapping[str, Any]
Ends: TypeAlias = tuple[float, float]
"""The new value against the old one: the least and the most that the change can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure of a subject: `verdict` is "regression", "improvement" or "no change shown".

    `change` is new / old, for the latency of SingleStream the ratio of the medians of all windows, and for an accuracy
    new - old. `ci95` is its interval, None where the two values are compared as they are. `unit` is that of the values.
    """

    subject: str
    metric: str
    unit: str
    old: float
    new: float
    change: float
    ci95: Ends | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """All changes, and notes on what keeps the two records from being compared."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes for the worse."""
        return tuple(change for change in self.changes if change.verdict == "regression")

    def to_dict(self) -> dict[str, Any]:
        """Return the changes as JSON."""
        changes = [asdict(change) for change in self.changes]
        return {"regressions": len(self.regressions), "notes": list(self.notes), "changes": changes}

    def to_markdown(self) -> str:
        """Return notes and a table, regressions first."""
        order = {"regression": 0, "improvement": 1}
        found = table("", _COLUMNS, sorted(self.changes, key=lambda change: order.get(change.verdict, 2)))
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*notes, "", found.to_markdown()]).strip() + "\n"


def _by(change: Change) -> str:
    """Return the unit of the change itself."""
    return "points" if change.unit == "share" else "times"


def _ends(change: Change) -> str:
    if change.ci95 is None:
        return ""
    low, high = (UNITS[_by(change)](end) for end in change.ci95)
    return f"{low.partition(' ')[0]} to {high}"


_COLUMNS: dict[str, Callable[[Change], str]] = {
    "Verdict": lambda change: change.verdict,
    "Subject": lambda change: change.subject,
    "Figure": lambda change: change.metric,
    "old": lambda change: shown(change.old, change.unit),
    "new": lambda change: shown(change.new, change.unit),
    "change": lambda change: "" if change.unit == "completed" else shown(change.change, _by(change)),
    "95 % interval": _ends,
}


def diff_all(old: Sequence[Record], new: Sequence[Record]) -> Diff:
    """Compare two lists of benches that `read_records` read from one record each, by their workloads.

    Raises:
        UsageError: they have no workload in common, or no subject on one.
    """
    before, after = ({record.get("name", ""): record for record in records} for records in (old, new))
    shared = [name for name in after if name in before]
    if not shared:
        raise UsageError("the two records have no workload in common; compare two of 'fieldrun bench', or two of peers")
    changes: list[Change] = []
    alone = [name for name in (*before, *after) if name not in shared]
    notes = [f"in one record only: {', '.join(alone)}"] if alone else []
    for name in shared:
        found = diff(before[name], after[name])
        changes += [replace(c, subject=f"{c.subject} on {name}") if name else c for c in found.changes]
        notes += [f"{name}: {note}" if name else note for note in found.notes]
    return Diff(changes=tuple(changes), notes=tuple(notes))


def diff(old: Record, new: Record) -> Diff:
    """Compare the subjects that both records have.

    Latency is compared by a bootstrap of repeats and windows (`ratio_interval`), accuracy on the same rows by the
    interval of `newcombe`. Throughput is worse when the best of the new turns is a tenth below the worst of the old
    ones. Cold start, memory and size are compared as they are. A subject that fails or ends early in the new record
    only is a regression. Times and memory of two machines are not compared.

    Raises:
        UsageError: no subject is in both records.
    """
    shared = [name for name in new["subjects"] if name in old["subjects"]]
    if not shared:
        raise UsageError(f"no subject is in both records: {', '.join(old['subjects'])}; {', '.join(new['subjects'])}")
    same_machine = machine_of(old) == machine_of(new)
    changes: list[Change] = []
    for name in shared:
        changes += _changes(name, old["subjects"][name], new["subjects"][name], same_machine)
    return Diff(changes=tuple(changes), notes=tuple(_notes(old, new, shared)))


def _notes(old: Record, new: Record, shared: Sequence[str]) -> Iterator[str]:
    if machine_of(old) != machine_of(new):
        yield f"other machines, so times are not compared: {machine_of(old)}; {machine_of(new)}"
    if old["workload"]["sources"] != new["workload"]["sources"]:
        yield "other texts, which may explain a difference"
    if left_out := [name for record in (old, new) for name in record["subjects"] if name not in shared]:
        yield f"in one record only: {', '.join(left_out)}"
    for name in shared:
        before, after = old["subjects"][name], new["subjects"][name]
        for label, subject in (("old", before), ("new", after)):
            if why := subject.get("failed", subject.get("ended_early")):
                yield f"{name} failed in the {label} record: {why}"
        for task in after.get("accuracy", {}):
            hashes = [find(subject, f"accuracy/{task}/sha256") for subject in (before, after)]
            if None not in hashes and hashes[0] != hashes[1]:
                yield f"{name}, {task}: other labelled rows, so accuracies are not compared"
    for label, record in (("old", old), ("new", new)):
        for entry in record["warnings"]:
            yield f"{label}: {entry['about']}: {entry['text']}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A change counts when its whole interval lies beyond `tolerance`."""

    tolerance: float
    higher_is_better: bool = False
    needs_same_machine: bool = True


_RULES = {  # by the start of the metric's name; the first that fits
    "single_stream_p50": _Rule(0.025),  # the variation that a bench warns about
    "offline_": _Rule(0.1, higher_is_better=True),  # three turns
    "cold_start_peak": _Rule(0.02),
    "cold_start": _Rule(0.1),  # few processes
    "resident": _Rule(0.02),
    "artifact": _Rule(0.02),
    "accuracy_": _Rule(0.0, higher_is_better=True, needs_same_machine=False),
}


def _changes(name: str, before: Subject, after: Subject, same_machine: bool) -> Iterator[Change]:
    first, second = (float("failed" not in one and "ended_early" not in one) for one in (before, after))
    if first != second:
        verdict = "regression" if second < first else "improvement"
        facts: dict[str, Any] = {"old": first, "new": second, "change": second, "ci95": None, "verdict": verdict}
        yield Change(subject=name, metric="completed", unit="completed", **facts)
    if "failed" in before or "failed" in after:
        return
    known = {metric.metric: metric for metric in metrics_of(name, before)}
    for new in metrics_of(name, after):
        old = known.get(new.metric)
        rule = next((rule for start, rule in _RULES.items() if new.metric.startswith(start)), None)
        if rule is None or old is None or old.value is None or new.value is None:
            continue
        compared = _compared(old, new, before, after)
        if compared is None or (rule.needs_same_machine and not same_machine):
            continue
        change, (low, high), is_ci95 = compared
        null = 0.0 if new.unit == "share" else 1.0
        up, down = low > null + rule.tolerance, high < null - rule.tolerance
        worse, better = (down, up) if rule.higher_is_better else (up, down)
        verdict = "regression" if worse else "improvement" if better else "no change shown"
        ci95 = (round(low, 5), round(high, 5)) if is_ci95 else None
        facts = {"old": old.value, "new": new.value, "change": round(change, 5), "ci95": ci95, "verdict": verdict}
        yield Change(subject=name, metric=new.metric, unit=new.unit, **facts)


def _compared(old: Metric, new: Metric, before: Subject, after: Subject) -> tuple[float, Ends, bool] | None:
    """Return the change, the ends that it may have, and whether they are a 95 % interval; None for what is unknown."""
    value, base = new.value or 0.0, old.value or 0.0
    if new.metric.startswith("single_stream"):
        found = ratio_interval(after["single_stream"]["windows_us"], before["single_stream"]["windows_us"])
        return found["ratio"], tuple(found["ci95"]), True
    if new.unit == "share":
        was, now = (subject["accuracy"][new.metric.partition("_")[2]] for subject in (before, after))
        return (value - base, newcombe(now, was), True) if was["sha256"] == now["sha256"] else None
    if not base:
        return None
    if new.unit != "texts/s":
        return value / base, (value / base, value / base), False
    if not (old.low and old.high and new.low and new.high):
        return None
    return value / base, (new.low / old.high, new.high / old.low), False


def newcombe(new: Mapping[str, Any], old: Mapping[str, Any]) -> Ends:
    """Return the 95 % interval of the difference of two proportions `{"accuracy", "n"}`, new - old.

    Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17, 1998,
    method 10.
    """
    p1, p2 = new["accuracy"], old["accuracy"]
    (l1, u1), (l2, u2) = (wilson_interval(round(e["accuracy"] * e["n"]), e["n"]) for e in (new, old))
    low = p1 - p2 - ((p1 - l1) ** 2 + (u2 - p2) ** 2) ** 0.5
    high = p1 - p2 + ((u1 - p1) ** 2 + (p2 - l2) ** 2) ** 0.5
    return low, high
