"""The blocks of docs/methods-on-transformers.md from the records `encoder-PART-NAME.json`.

Where nothing was measured a block says by which command to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.record import read_record

from ..columns import Block, Column, Part, Record, Table, change, conditions, interval, megabytes, percent, slashed

__all__ = ["BLOCKS"]

_COMMAND = "python -m studies.encoder_methods.measure NAME=DIR ... --data DATA -o benchmarks/records"
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


def _block(part: str, table: Callable[[Record], Table]) -> Block:
    """Return the block of one table an encoder, each under its name."""

    def parts(records: Path) -> Sequence[Part]:
        found = _records(records, part)
        if not found:
            return [f"*Not measured yet: `{_COMMAND} --parts {part}`.*"]
        shown: list[Part] = []
        for record in found:
            about = record["encoder"]
            size = f"{about['layers']} blocks, {about['block_parameters'] / 1e6:.2f} M numbers in their dense maps"
            shown += [f"**{about['name']}**: {size}", table(record), conditions(record)]
        return shown

    return parts


def _signed(entry: Record, digits: int, scale: float = 1.0) -> str:
    return change(entry, digits, scale, ends="difference_ci95")


def _quality(record: Record) -> list[Column]:
    """Return the columns of cosine, STS-B, its difference, the probes and their mean's difference."""

    def cosine(row: Record) -> str:
        if "refused" in row:
            return f"refused: {row['refused']}"
        return f"{row['field']['mean_cosine']:.4f}" if "field" in row else "1"

    def spearman(entry: Record) -> str:
        return f"{entry['spearman']:.4f} {interval(entry['ci95'], 3, 1)}"

    probes = [Column(f"{task}, %", f"tasks.{task}.accuracy", percent, missing="") for task in record["dense"]["tasks"]]
    return [
        Column("cosine", cosine),
        Column("STS-B, Spearman (95 %)", "stsb", spearman, missing=""),
        Column("to dense", "stsb", lambda entry: _signed(entry, 4), missing=""),
        *probes,
        Column("mean of probes to dense, points", "mean", lambda entry: _signed(entry, 2, 100), missing=""),
    ]


def _with_dense(record: Record, name: Callable[[str, Any], str], **dense: Any) -> list[Record]:
    """Return the rows: the dense encoder with the facts `dense`, then every variant under its name."""
    first = {**record["dense"], "name": "dense", "facts": dense}
    return [first, *({**entry, "name": name(key, entry)} for key, entry in record["variants"].items())]


_LEFT = Column("numbers left, %", "facts.parameters.share", percent, missing="")
_ALL = {"share": 1.0}


def _lowrank(record: Record) -> Table:
    rows = _with_dense(record, lambda _, entry: f"{_METHODS[entry['method']]}, {entry['ratio']:.0%}", parameters=_ALL)
    return Table([Column("Method, taken away", "name"), _LEFT, *_quality(record)], rows)


def _cluster(record: Record) -> Table:
    def name(_: str, entry: Record) -> str:
        tuned = [" and ".join(entry["tuned"])] if entry["tuned"] else []
        return ", tuned ".join([f"K = {entry['entries']}", *tuned])

    columns = [
        Column("Values a matrix", "name"),
        Column("MB", "facts.bytes.after", megabytes, missing=""),
        *_quality(record),
        Column("gap won back, STS-B", "recovered.stsb", _recovered, missing=""),
        Column("gap won back, 1 - cosine", "recovered.field.share", lambda x: f"{100 * x:.0f} %", missing=""),
    ]
    whole = {"after": 4 * record["encoder"]["block_parameters"]}
    return Table(columns, _with_dense(record, name, bytes=whole))


def _recovered(entry: Record) -> str:
    if entry["share"] is None:
        low, high = entry["gap_ci95"]
        return f"no gap to win: {entry['gap']:.4f} ({low:+.4f} to {high:+.4f})"
    low, high = entry["ci95"]
    return f"{100 * entry['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _fact(title: str, key: str) -> Column:
    return Column(title, lambda row: fmean(run["facts"][key] for run in row["runs"]), "{:.2f}")


def _rank(record: Record) -> Table:
    clustered = record["clustered"]["stsb"]
    rows = []
    for group in _groups(record):
        for order, label in _ORDERS.items():
            runs = [e for e in record["variants"].values() if (e["group"], e["order"]) == (group, order)]
            rows.append({"blocks": f"{group}, {len(runs[0]['layers'])} blocks", "values": label, "runs": runs})
    columns = (
        Column("Blocks", "blocks"),
        Column("Values", "values"),
        _fact("weight error", "weight_error"),
        _fact("correlation", "correlation"),
        Column("STS-B, mean", lambda row: fmean(run["stsb"]["spearman"] for run in row["runs"]), "{:.4f}"),
        Column(
            "to clustered, each seed", lambda row: slashed([r["stsb"]["difference"] for r in row["runs"]], "{:+.4f}")
        ),
        Column("cosine", lambda row: fmean(run["field"]["mean_cosine"] for run in row["runs"]), "{:.4f}"),
    )
    base = ["none", f"K = {record['entries']}", "", "", f"{clustered['spearman']:.4f}", "", "1"]
    return Table(columns, rows, above=[base])


def _mixt(record: Record) -> Table:
    columns = [
        Column(f"Blocks {', '.join(str(k) for k in record['layers'])}", "name"),
        _LEFT,
        Column("energy kept", "facts.mean_energy", lambda x: f"{100 * x:.0f} %", missing=""),
        *_quality(record),
    ]
    return Table(columns, _with_dense(record, lambda key, _: key.replace("mixt ", "MixT, N = "), parameters=_ALL))


_CLAIMS = (
    (
        "lowrank",
        "A3 is nearer to the dense model than SVD of single maps at the same size",
        "LLaMA-2-7B at 10 %, WikiText-2 perplexity: 5.96, SVD-LLM 8.78",
    ),
    ("cluster", "Tuning the centroids alone wins back part of the gap", "30 - 40 %"),
    ("cluster", "With the biases of the same maps, which cost no bytes", "not tried"),
    (
        "rank",
        "The order of the values matters more than the values",
        "middle and late layers keep working with other values in the same order, none with another order",
    ),
    ("rank", "An affine correction delays the failure of many layers at once", "yes"),
    (
        "mixt",
        "Late blocks as mixtures, after recovery, keep the quality",
        "LLaMA-2-7B: 47.5 % fewer parameters",
    ),
)


def _claims(records: Path) -> Sequence[Part]:
    """Every claim beside what was found, counted from the records alone."""
    found = {part: _records(records, part) for part in ("lowrank", "cluster", "rank", "mixt")}
    if not all(found.values()):
        missing = ", ".join(part for part, entries in found.items() if not entries)
        return [f"*Not measured yet: {missing}.*"]

    def each(part: str, said: Callable[[Record], str]) -> str:
        return "; ".join(f"{record['encoder']['name']}: {said(record)}" for record in found[part])

    here = [
        _nearer(found["lowrank"]),
        each("cluster", lambda record: _won(record, ["centroids"])),
        each("cluster", lambda record: _won(record, ["centroids", "biases"])),
        each("rank", _order),
        each("rank", _affine),
        each("mixt", _mixtures),
    ]
    rows = [(claim, said, ours) for (_, claim, said), ours in zip(_CLAIMS, here, strict=True)]
    columns = (
        Column("Claim", lambda row: row[0]),
        Column("Published", lambda row: row[1]),
        Column("Here", lambda row: row[2]),
    )
    return [Table(columns, rows)]


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
    return fmean(entry["stsb"]["spearman"] for entry in chosen)


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


BLOCKS: dict[str, Block] = {
    "encoder-lowrank": _block("lowrank", _lowrank),
    "encoder-cluster": _block("cluster", _cluster),
    "encoder-rank": _block("rank", _rank),
    "encoder-mixt": _block("mixt", _mixt),
    "encoder-claims": _claims,
}
