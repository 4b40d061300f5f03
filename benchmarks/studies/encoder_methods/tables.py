"""Render the blocks of docs/methods-on-transformers.md from the records `encoder-PART-NAME.json`.

The blocks are tables of `studies.tables`. Where nothing was measured a block says by which command to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.record import read_record, where

__all__ = ["TABLES"]

Record = Mapping[str, Any]

_COMMAND = "python -m studies.encoder_methods.measure NAME=DIR ... --data DATA --out benchmarks/records"
_METHODS = {
    "svd": "SVD",
    "activation-svd": "activation-aware SVD",
    "a3-published": "A3, as published",
    "a3": "A3, exact biases",
}
_ORDERS = {
    "kept": "order kept, values redrawn",
    "kept-affine": "the same, then affine",
    "broken-near": "order broken, as near as that",
    "broken": "order broken, values permuted",
}


def _records(records: Path, part: str) -> list[Record]:
    """Return the records of `part`, one an encoder, largest encoder last; `FieldrunError` for a quick one."""
    found = [read_record(path, f"encoder-{part}") for path in sorted(records.glob(f"encoder-{part}-*.json"))]
    for record in found:
        if record["quick"]:
            name = record["encoder"]["name"]
            raise FieldrunError(f"the record of {part} on {name} was measured with --quick; measure it without")
    return sorted(found, key=lambda record: (record["encoder"]["block_parameters"], record["encoder"]["name"]))


def _block(part: str, rows: Callable[[Record], list[str]]) -> Callable[[Path], str]:
    """Return the renderer of one table an encoder, each under its name."""

    def render(records: Path) -> str:
        found = _records(records, part)
        if not found:
            return f"*Not measured yet: `{_COMMAND} --parts {part}`.*"
        blocks = []
        for record in found:
            about = record["encoder"]
            size = f"{about['layers']} blocks, {about['block_parameters'] / 1e6:.2f} M numbers in their dense maps"
            blocks += [f"**{about['name']}**: {size}", "", *rows(record), "", where(record), ""]
        return "\n".join(blocks[:-1])

    return render


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _interval(low: float, high: float, digits: int, scale: float = 1.0) -> str:
    return f"({scale * low:.{digits}f} - {scale * high:.{digits}f})"


def _signed(entry: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    low, high = entry["difference_ci95"]
    value, low, high = (scale * x + 0.0 for x in (entry["difference"], low, high))
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _quality(entry: Record, tasks: Sequence[str]) -> list[str]:
    """Return the cells of cosine, STS-B, its difference, the probes and their mean's difference."""
    if "refused" in entry:
        return [f"refused: {entry['refused']}", *([""] * (3 + len(tasks)))]
    stsb = entry["stsb"]
    low, high = stsb["ci95"]
    cosine = f"{entry['field']['mean_cosine']:.4f}" if "field" in entry else "1"
    probes = [f"{100 * entry['tasks'][task]['accuracy']:.1f}" for task in tasks]
    return [
        cosine,
        f"{stsb['spearman']:.4f} {_interval(low, high, 3)}",
        _signed(stsb, 4),
        *probes,
        _signed(entry["mean"], 2, 100),
    ]


def _columns(tasks: Sequence[str]) -> list[str]:
    shown = [f"{task}, %" for task in tasks]
    return ["cosine", "STS-B, Spearman (95 %)", "to dense", *shown, "mean of probes to dense, points"]


def _share(entry: Record) -> str:
    counted = entry.get("facts", {}).get("parameters")
    return f"{100 * counted['share']:.1f}" if counted else ""


def _lowrank(record: Record) -> list[str]:
    tasks = list(record["dense"]["tasks"])
    rows = [["dense", "100", *_quality(record["dense"], tasks)]]
    for entry in record["variants"].values():
        name = f"{_METHODS[entry['method']]}, {entry['ratio']:.0%}"
        rows.append([name, _share(entry), *_quality(entry, tasks)])
    return _table(["Method, taken away", "numbers left, %", *_columns(tasks)], rows)


def _cluster(record: Record) -> list[str]:
    tasks = list(record["dense"]["tasks"])
    whole = 4 * record["encoder"]["block_parameters"]
    rows = [["dense", f"{whole / 1e6:.1f}", *_quality(record["dense"], tasks), "", ""]]
    for entry in record["variants"].values():
        name = ", tuned ".join([f"K = {entry['entries']}", *([" and ".join(entry["tuned"])] if entry["tuned"] else [])])
        size = entry.get("facts", {}).get("bytes")
        back = entry.get("recovered")
        rows.append(
            [
                name,
                f"{size['after'] / 1e6:.1f}" if size else "",
                *_quality(entry, tasks),
                _recovered(back["stsb"]) if back else "",
                f"{100 * back['field']['share']:.0f} %" if back else "",
            ]
        )
    columns = ["Values a matrix", "MB", *_columns(tasks), "gap won back, STS-B", "gap won back, 1 - cosine"]
    return _table(columns, rows)


def _recovered(entry: Mapping[str, Any]) -> str:
    if entry["share"] is None:
        low, high = entry["gap_ci95"]
        return f"no gap to win: {entry['gap']:.4f} ({low:+.4f} to {high:+.4f})"
    low, high = entry["ci95"]
    return f"{100 * entry['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _rank(record: Record) -> list[str]:
    clustered = record["clustered"]["stsb"]
    rows = [["none", f"K = {record['entries']}", "", "", f"{clustered['spearman']:.4f}", "", "1"]]
    for group in dict.fromkeys(entry["group"] for entry in record["variants"].values()):
        for order, label in _ORDERS.items():
            runs = [e for e in record["variants"].values() if (e["group"], e["order"]) == (group, order)]
            facts = [run["facts"] for run in runs]
            values = [run["stsb"]["spearman"] for run in runs]
            layers = f"{group}, {len(runs[0]['layers'])} blocks"
            rows.append(
                [
                    layers,
                    label,
                    f"{_mean([f['weight_error'] for f in facts]):.2f}",
                    f"{_mean([f['correlation'] for f in facts]):.2f}",
                    f"{_mean(values):.4f}",
                    " / ".join(f"{run['stsb']['difference']:+.4f}" for run in runs),
                    f"{_mean([run['field']['mean_cosine'] for run in runs]):.4f}",
                ]
            )
    columns = ["Blocks", "Values", "weight error", "correlation", "STS-B, mean", "to clustered, each seed", "cosine"]
    return _table(columns, rows)


def _mixt(record: Record) -> list[str]:
    tasks = list(record["dense"]["tasks"])
    rows = [["dense", "100", "", *_quality(record["dense"], tasks)]]
    for name, entry in record["variants"].items():
        energy = entry.get("facts", {}).get("mean_energy")
        label = name.replace("mixt ", "MixT, N = ")
        rows.append([label, _share(entry), f"{100 * energy:.0f} %" if energy else "", *_quality(entry, tasks)])
    blocks = ", ".join(str(k) for k in record["layers"])
    columns = [f"Blocks {blocks}", "numbers left, %", "energy kept", *_columns(tasks)]
    return _table(columns, rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _claims(records: Path) -> str:
    """Every claim beside what was found, counted from the records alone."""
    found = {part: _records(records, part) for part in ("lowrank", "cluster", "rank", "mixt")}
    if not all(found.values()):
        missing = ", ".join(part for part, entries in found.items() if not entries)
        return f"*Not measured yet: {missing}.*"
    rows = [
        [
            "A3 is nearer to the dense model than SVD of single maps at the same size",
            "LLaMA-2-7B at 10 %, WikiText-2 perplexity: 5.96, SVD-LLM 8.78",
            _nearer(found["lowrank"]),
        ],
        [
            "Tuning the centroids alone wins back part of the gap",
            "30 - 40 %",
            "; ".join(f"{record['encoder']['name']}: {_won(record, ['centroids'])}" for record in found["cluster"]),
        ],
        [
            "With the biases of the same maps, which cost no bytes",
            "not tried",
            "; ".join(
                f"{record['encoder']['name']}: {_won(record, ['centroids', 'biases'])}" for record in found["cluster"]
            ),
        ],
        [
            "The order of the values matters more than the values",
            "middle and late layers keep working with other values in the same order, none with another order",
            "; ".join(f"{record['encoder']['name']}: {_order(record)}" for record in found["rank"]),
        ],
        [
            "An affine correction delays the failure of many layers at once",
            "yes",
            "; ".join(f"{record['encoder']['name']}: {_affine(record)}" for record in found["rank"]),
        ],
        [
            "Late blocks as mixtures, after recovery, keep the quality",
            "LLaMA-2-7B: 47.5 % fewer parameters",
            "; ".join(f"{record['encoder']['name']}: {_mixtures(record)}" for record in found["mixt"]),
        ],
    ]
    return "\n".join(_table(["Claim", "Published", "Here"], rows))


def _nearer(found: Sequence[Record]) -> str:
    """Count at how many ratios and encoders A3 beats both controls, by cosine and by STS-B."""
    cells = []
    for method in ("a3", "a3-published"):
        wins = {"cosine": 0, "STS-B": 0}
        cases = 0
        for record in found:
            variants = list(record["variants"].values())
            for ratio in sorted({entry["ratio"] for entry in variants}):
                own = {entry["method"]: entry for entry in variants if entry["ratio"] == ratio}
                cases += 1
                for name, read in _READS.items():
                    others = [read(own[other]) for other in ("svd", "activation-svd")]
                    wins[name] += read(own[method]) > max(others)
        named = ", ".join(f"by {name} {count} of {cases}" for name, count in wins.items())
        cells.append(f"{_METHODS[method]}: ahead of both {named}")
    return "; ".join(cells)


_READS: Mapping[str, Callable[[Record], float]] = {
    "cosine": lambda entry: float(entry["field"]["mean_cosine"]),
    "STS-B": lambda entry: float(entry["stsb"]["spearman"]),
}


def _won(record: Record, tuned: Sequence[str]) -> str:
    parts = []
    for entry in record["variants"].values():
        if entry["tuned"] != tuned:
            continue
        if "recovered" not in entry:
            parts.append(f"K = {entry['entries']} refused, no nearer")
            continue
        back = entry["recovered"]
        stsb = "no gap" if back["stsb"]["share"] is None else f"{100 * back['stsb']['share']:.0f} %"
        parts.append(f"K = {entry['entries']} {stsb} of STS-B, {100 * back['field']['share']:.0f} % of 1 - cosine")
    return ", ".join(parts)


def _spearman(record: Record, group: str, order: str) -> float:
    chosen = [e for e in record["variants"].values() if (e["group"], e["order"]) == (group, order)]
    return _mean([float(entry["stsb"]["spearman"]) for entry in chosen])


def _groups(record: Record) -> list[str]:
    return list(dict.fromkeys(str(entry["group"]) for entry in record["variants"].values()))


def _order(record: Record) -> str:
    cells = []
    for group in _groups(record):
        kept, near, broken = (_spearman(record, group, order) for order in ("kept-affine", "broken-near", "broken"))
        cells.append(f"{group} {kept:.3f} kept, {near:.3f} broken as near, {broken:.3f} permuted")
    return ", ".join(cells)


def _affine(record: Record) -> str:
    before, after = (_spearman(record, "all", order) for order in ("kept", "kept-affine"))
    return f"all blocks {before:.3f} without, {after:.3f} with"


def _mixtures(record: Record) -> str:
    cells = []
    for name, entry in record["variants"].items():
        if "refused" in entry:
            cells.append(f"{name} refused")
        elif name.endswith("recovered"):
            cells.append(f"{name.removesuffix(' recovered')} {_signed(entry['stsb'], 3)}")
    return "STS-B to dense, recovered: " + ", ".join(cells)


TABLES: dict[str, Callable[[Path], str]] = {
    "encoder-lowrank": _block("lowrank", _lowrank),
    "encoder-cluster": _block("cluster", _cluster),
    "encoder-rank": _block("rank", _rank),
    "encoder-mixt": _block("mixt", _mixt),
    "encoder-claims": _claims,
}
