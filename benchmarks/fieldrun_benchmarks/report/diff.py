"""Two benches of the same subjects, before and after: what became slower, larger or less right, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fieldrun.errors import UsageError
from fieldrun.evaluation.metrics import wilson_interval

from ..harness.percentiles import ratio_interval
from .facts import machine_of

__all__ = ["Change", "Diff", "diff", "diff_all"]

Record = Mapping[str, Any]
_TOLERANCE = 0.025
"""Times: a regression when the whole interval lies above 1 by more than this, the variation that a bench warns of."""
_SIZE_TOLERANCE = 0.02
_FEW_TOLERANCE = 0.1  # of throughput and cold start: few turns, few processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure of a subject: `verdict` is "regression", "improvement" or "no change shown".

    `change` is new / old, for the latency of SingleStream the ratio of the medians of all windows, and for an accuracy
    new - old; `ci95` is its interval, None where one value each was counted.
    """

    subject: str
    metric: str
    old: float
    new: float
    change: float
    ci95: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """All changes, and what keeps the two records from being compared; then there is no verdict on times."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes for the worse."""
        return tuple(change for change in self.changes if change.verdict == "regression")

    def to_dict(self) -> dict[str, Any]:
        """Return the changes as JSON."""
        return {
            "regressions": len(self.regressions),
            "notes": list(self.notes),
            "changes": [asdict(c) for c in self.changes],
        }

    def to_markdown(self) -> str:
        """Return a table, regressions first."""
        lines = [f"note: {note}" for note in self.notes]
        lines += ["", "| Verdict | Subject | Figure | old | new | change | 95 % interval |", "|---" * 7 + "|"]
        order = {"regression": 0, "improvement": 1}
        for c in sorted(self.changes, key=lambda c: order.get(c.verdict, 2)):
            ends = f"{c.ci95[0]:+.3f} to {c.ci95[1]:+.3f}" if c.ci95 and c.metric.startswith("accuracy") else ""
            if c.ci95 and not ends:
                ends = f"{c.ci95[0]:.3f} - {c.ci95[1]:.3f}"
            change = f"{100 * c.change:+.1f} points" if c.metric.startswith("accuracy") else f"{c.change:.3f} times"
            lines.append(
                f"| {c.verdict} | {c.subject} | {c.metric} | {c.old:,.4g} | {c.new:,.4g} | {change} | {ends} |"
            )
        return "\n".join(lines).strip() + "\n"


def diff_all(old: Sequence[Record], new: Sequence[Record]) -> Diff:
    """Compare two lists of benches that `read_records` gave of one record each, by their workloads.

    Raises:
        UsageError: they have no workload, or on one no subject, in common.
    """
    before, after = ({record.get("name", ""): record for record in records} for records in (old, new))
    shared = [name for name in after if name in before]
    if not shared:
        raise UsageError("the two records have no workload in common; compare two of fieldrun bench, or two of peers")
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

    Latency is compared by the bootstrap of repeats and windows (`ratio_interval`), accuracy on the same rows by
    Newcombe's interval for a difference of proportions ("Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17, 1998, method 10). Throughput is worse when the best of the new turns is
    a tenth below the worst of the old ones; cold start, memory and size are compared as they are. A subject that fails
    or ends early in the new record only is a regression.

    Raises:
        UsageError: no subject is in both.
    """
    shared = [name for name in new["subjects"] if name in old["subjects"]]
    if not shared:
        raise UsageError(f"no subject is in both records: {', '.join(old['subjects'])}; {', '.join(new['subjects'])}")
    notes = _notes(old, new, shared)
    same_machine = machine_of(old) == machine_of(new)
    changes = []
    for name in shared:
        before, after = old["subjects"][name], new["subjects"][name]
        changes += _ends(name, before, after)
        if "failed" in before or "failed" in after:
            continue
        if same_machine:
            changes += _times(name, before, after)
            changes += _throughput(name, before, after)
            changes += _counted(name, before, after)
        changes += _accuracies(name, before, after)
    return Diff(changes=tuple(changes), notes=tuple(notes))


def _ends(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    first, second = (float("failed" not in one and "ended_early" not in one) for one in (before, after))
    if first == second:
        return []
    verdict = _verdict(second < first, second > first)
    return [Change(subject=name, metric="completed", old=first, new=second, change=second, ci95=None, verdict=verdict)]


def _notes(old: Record, new: Record, shared: Sequence[str]) -> list[str]:
    found = []
    if machine_of(old) != machine_of(new):
        found.append(f"other machines, times are not compared: {machine_of(old)}; {machine_of(new)}")
    if old["workload"]["sources"] != new["workload"]["sources"]:
        found.append("other texts: what differs may be the texts")
    left_out = [name for record in (old, new) for name in record["subjects"] if name not in shared]
    if left_out:
        found.append(f"in one record only: {', '.join(left_out)}")
    for name in shared:
        for label, record in (("old", old), ("new", new)):
            subject = record["subjects"][name]
            if why := subject.get("failed", subject.get("ended_early")):
                found.append(f"{name} failed in the {label} record: {why}")
        first, second = (record["subjects"][name].get("accuracy", {}) for record in (old, new))
        others = [task for task in _tasks(first, second) if first[task]["sha256"] != second[task]["sha256"]]
        found += [f"{name}, {task}: other labelled rows, accuracies are not compared" for task in others]
    for label, record in (("old", old), ("new", new)):
        found += [f"{label}: {entry['about']}: {entry['text']}" for entry in record["warnings"]]
    return found


def _times(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    first, second = before["single_stream"], after["single_stream"]
    found = ratio_interval(second["windows_us"], first["windows_us"])
    low, high = found["ci95"]
    verdict = _verdict(low > 1 + _TOLERANCE, high < 1 - _TOLERANCE)
    return [
        Change(
            subject=name,
            metric="single_stream_p50_us",
            old=first["p50_us"],
            new=second["p50_us"],
            change=found["ratio"],
            ci95=(low, high),
            verdict=verdict,
        )
    ]


def _throughput(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    first, second = (
        {(row["batch"], row["threads"]): row for row in one["offline"]} if isinstance(one["offline"], list) else {}
        for one in (before, after)
    )
    found = []
    for (batch, threads), row in second.items():
        base = first.get((batch, threads))
        if base is None or not base["min"] or not row["min"]:
            continue
        worse = row["max"] < (1 - _FEW_TOLERANCE) * base["min"]
        better = row["min"] > (1 + _FEW_TOLERANCE) * base["max"]
        found.append(
            Change(
                subject=name,
                metric=f"offline_batch{batch}_callers{threads}_texts_per_s",
                old=base["texts_per_s"],
                new=row["texts_per_s"],
                change=round(row["texts_per_s"] / base["texts_per_s"], 4),
                ci95=None,
                verdict=_verdict(worse, better),
            )
        )
    return found


def _counted(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    def values(subject: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "resident_mib": subject["memory"].get("loaded", {}).get("resident_mib"),
            "cold_start_s": subject["cold_start"].get("wall_s"),
            "cold_start_peak_mib": subject["cold_start"].get("peak_rss_mib"),
            "artifact_bytes": subject["about"].get("artifact", {}).get("bytes"),
        }

    found = []
    for metric, value in values(after).items():
        base = values(before)[metric]
        if isinstance(value, int | float) and isinstance(base, int | float) and base:
            change = value / base
            tolerance = _FEW_TOLERANCE if metric == "cold_start_s" else _SIZE_TOLERANCE
            verdict = _verdict(change > 1 + tolerance, change < 1 - tolerance)
            found.append(
                Change(
                    subject=name,
                    metric=metric,
                    old=base,
                    new=value,
                    change=round(change, 4),
                    ci95=None,
                    verdict=verdict,
                )
            )
    return found


def _accuracies(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    found = []
    for task in _tasks(before["accuracy"], after["accuracy"]):
        base, entry = before["accuracy"][task], after["accuracy"][task]
        if base["sha256"] != entry["sha256"]:
            continue
        change = entry["accuracy"] - base["accuracy"]
        low, high = _newcombe(entry, base)
        verdict = _verdict(high < 0, low > 0)
        found.append(
            Change(
                subject=name,
                metric=f"accuracy_{task}",
                old=base["accuracy"],
                new=entry["accuracy"],
                change=round(change, 5),
                ci95=(round(low, 5), round(high, 5)),
                verdict=verdict,
            )
        )
    return found


def _tasks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the tasks whose accuracy was measured in both."""
    return [
        task
        for task, entry in after.items()
        if all(isinstance(one, Mapping) and "accuracy" in one for one in (entry, before.get(task)))
    ]


def _newcombe(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[float, float]:
    p1, p2 = new["accuracy"], old["accuracy"]
    (l1, u1), (l2, u2) = (wilson_interval(round(e["accuracy"] * e["n"]), e["n"]) for e in (new, old))
    low = p1 - p2 - ((p1 - l1) ** 2 + (u2 - p2) ** 2) ** 0.5
    high = p1 - p2 + ((u1 - p1) ** 2 + (p2 - l2) ** 2) ** 0.5
    return low, high


def _verdict(worse: bool, better: bool) -> str:
    return "regression" if worse else "improvement" if better else "no change shown"
