"""How an encoder is judged: STS-B, three probes, and how near its fields are to the dense encoder's.

STS-B dev: Spearman's correlation of the cosine of two fields with the grade; its interval and those of differences are
percentiles of 1,000 draws of the pairs, the same draws for every encoder. TREC, SST-2 and BANKING77: a logistic
regression on the fields, fitted for every encoder on the same train rows. Such a probe tells what the fields hold, not
whether an old head still works. Fields are scaled to length 1, and texts are cut to 128 tokens. Texts for calibration
and tuning are drawn from train files, and none of them is in a report file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fieldrun.errors import DatasetError
from fieldrun.evaluation.copies import first_rows, text_key
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.evaluation.metrics import spearman
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.tensors import Array
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import head_logits
from fieldrun_exporters.encoder.model import Encoder

from ..paired import difference, scored
from .network import fields

__all__ = ["PROBES", "Limits", "Probe", "Suite", "Tokens", "judge", "read_suite", "recovered", "resampled", "summary"]

PROBES = {"trec": "test.tsv", "sst2": "dev.tsv", "banking77": "test.tsv"}
SIMILARITY = "stsb"
_TOKENS = 128
_DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many rows at most: of a probe's train and report file, pairs of STS-B, texts to calibrate and tune on."""

    train: int = 1500
    report: int = 1000
    pairs: int | None = None
    calibration: int = 512
    tuning: int = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Row numbers into the suite's texts, with their labels."""

    train: tuple[int, ...]
    train_labels: tuple[str, ...]
    report: tuple[int, ...]
    report_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Distinct texts, the questions about them, and texts of train files to calibrate and tune on."""

    texts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """STS-B's, as numbers of texts; these come first."""
    grades: tuple[float, ...]
    probes: Mapping[str, Probe]
    calibration: tuple[str, ...]
    tuning: tuple[str, ...]
    hashes: Mapping[str, str]
    limits: Limits

    @property
    def paired(self) -> int:
        """The number of texts at the start that STS-B needs."""
        return 1 + max(max(pair) for pair in self.pairs)

    def about(self) -> dict[str, Any]:
        """Return the sizes, the limits and the files, for a record."""
        return {
            "texts": len(self.texts),
            "limits": asdict(self.limits),
            "stsb_pairs": len(self.pairs),
            "probes": {
                task: {
                    "train": len(probe.train),
                    "n": len(probe.report),
                    "labels": len(set(probe.train_labels)),
                    "report_file": f"{task}/{PROBES[task]}",
                }
                for task, probe in self.probes.items()
            },
            "calibration_texts": len(self.calibration),
            "tuning_texts": len(self.tuning),
            "data_sha256": dict(self.hashes),
        }

    def digest(self) -> str:
        """Return a hash of all that results depend on."""
        parts = (self.texts, self.pairs, self.grades, self.calibration, self.tuning, sorted(self.probes.items()))
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def read_suite(data: Path, limits: Limits) -> Suite:
    """Read STS-B and the probes' files in `data`; rows beyond `limits` are left out by a draw with a fixed seed.

    Raises:
        DatasetError: a file is missing or damaged, or a grade of STS-B is not a number.
    """
    number: dict[str, int] = {}

    def numbered(texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(number.setdefault(text, len(number)) for text in texts)

    similarity = read_tsv(data / SIMILARITY / "dev.tsv")
    chosen = _drawn(len(similarity), limits.pairs)
    both = [_sides(similarity, i) for i in chosen]
    pairs = tuple(zip(numbered([a for a, _ in both]), numbered([b for _, b in both]), strict=True))
    try:
        grades = tuple(float(similarity.labels[i]) for i in chosen)
    except ValueError as error:
        raise DatasetError(f"{similarity.path}: a grade is not a number ({error}); correct it") from error
    hashes = {f"{SIMILARITY}/dev.tsv": str(similarity.sha256)}
    reported = {text_key(text) for i in range(len(similarity)) for text in _sides(similarity, i)}
    probes: dict[str, Probe] = {}
    trains = {SIMILARITY: read_tsv(data / SIMILARITY / "train.tsv")}
    for task, file in PROBES.items():
        train, report = read_tsv(data / task / "train.tsv"), read_tsv(data / task / file)
        own = {text_key(text) for text in report.texts}  # a copy of a reported row must not be learnt from
        free_rows = [i for i in range(len(train)) if text_key(train.texts[i]) not in own]
        rows = [free_rows[i] for i in _drawn(len(free_rows), limits.train)]
        asked = _drawn(len(report), limits.report)
        probes[task] = Probe(
            train=numbered([str(train.texts[i]) for i in rows]),
            train_labels=tuple(train.labels[i] for i in rows),
            report=numbered([str(report.texts[i]) for i in asked]),
            report_labels=tuple(report.labels[i] for i in asked),
        )
        reported |= own
        hashes[f"{task}/{file}"] = str(report.sha256)
        trains[task] = train
    hashes |= {f"{task}/train.tsv": str(train.sha256) for task, train in trains.items()}
    free = {
        task: [t for i in range(len(train)) for t in _sides(train, i) if text_key(t) not in reported]
        for task, train in trains.items()
    }
    wanted = {name: _mixed(free, getattr(limits, name), seed) for name, seed in (("calibration", 1), ("tuning", 2))}
    return Suite(
        texts=tuple(number),
        pairs=pairs,
        grades=grades,
        probes=probes,
        calibration=tuple(wanted["calibration"]),
        tuning=tuple(wanted["tuning"]),
        hashes=hashes,
        limits=limits,
    )


def _drawn(rows: int, most: int | None) -> list[int]:
    if most is None or rows <= most:
        return list(range(rows))
    chosen: list[int] = np.sort(np.random.default_rng(0).permutation(rows)[:most]).tolist()
    return chosen


def _mixed(free: Mapping[str, Sequence[str]], count: int, seed: int) -> list[str]:
    """Return `count` different texts, as many of each set."""
    rng = np.random.default_rng(seed)
    found: list[str] = []
    for texts in free.values():
        different = [texts[i] for i in first_rows(map(text_key, texts))]
        found += [different[i] for i in rng.permutation(len(different))[: -(-count // len(free))]]
    return list(dict.fromkeys(found))[:count]


def _sides(rows: Dataset, i: int) -> tuple[str, ...]:
    text = rows.texts[i]
    return (text,) if isinstance(text, str) else text


class Tokens:
    """The suite's texts as one encoder's token ids."""

    def __init__(self, suite: Suite, encoder: Encoder) -> None:
        self.suite = suite
        self.tokenizer = Tokenizer.from_str(encoder.tokenizer.decode("utf-8"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(min(_TOKENS, encoder.config.max_positions))

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of `texts`."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    @cached_property
    def asked(self) -> list[list[int]]:
        """The ids of the texts with questions."""
        return self.of(self.suite.texts)


def judge(
    encoder: Encoder,
    tokens: Tokens,
    *,
    dense: Array | None = None,
    probes: bool = True,
    progress: Progress = silent,
) -> tuple[dict[str, Any], Array]:
    """Return what `summary` needs, JSON, and the fields `(texts, hidden) float32` of length 1.

    Args:
        encoder: the encoder to judge.
        tokens: of the suite, by its tokenizer.
        dense: the dense encoder's fields, to compare with.
        probes: whether to fit the probes; only STS-B without.
        progress: called with ("fields", batches done, batches in all).
    """
    suite = tokens.suite
    asked = tokens.asked if probes else tokens.asked[: suite.paired]
    found = fields(encoder, asked, progress)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
    left, right = (found[list(side)] for side in zip(*suite.pairs, strict=True))
    result: dict[str, Any] = {"cosines": [round(float(c), 6) for c in (left * right).sum(1)]}
    if dense is not None:
        near = (found[: suite.paired] * dense[: suite.paired]).sum(1)
        result["field"] = {"mean_cosine": float(near.mean()), "p1_cosine": float(np.percentile(near, 1))}
    if probes:
        result["tasks"] = {task: _probed(found, probe) for task, probe in suite.probes.items()}
    return result, found


def _probed(found: Array, probe: Probe) -> dict[str, Any]:
    head = fit_fields(found[list(probe.train)], probe.train_labels)
    rows = head_logits(head, found[list(probe.report)]).argmax(1).tolist()
    hits = [head.labels[i] == label for i, label in zip(rows, probe.report_labels, strict=True)]
    return scored(np.array(hits)) | {"strength": head.about["strength"]}


def resampled(cosines: Sequence[float], grades: Sequence[float]) -> Array:
    """Return Spearman's correlation in 1,000 draws of the pairs, `(draws,)`: the same draws for equally many pairs."""
    rows = np.random.default_rng(0).integers(0, len(grades), (_DRAWS, len(grades)))
    x, y = np.asarray(cosines, np.float64), np.asarray(grades, np.float64)
    return np.array([_correlation(x[draw], y[draw]) for draw in rows])


def summary(found: Mapping[str, Any], base: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """Return figures with intervals of one encoder, and what it differs by from `base` on the very same rows."""
    own, other = (resampled(each["cosines"], suite.grades) for each in (found, base))
    value, first = (_correlation(each["cosines"], suite.grades) for each in (found, base))
    result: dict[str, Any] = {
        "stsb": {
            "n": len(suite.grades),
            "spearman": round(value, 5),
            "ci95": _percentiles(own),
            "difference": round(value - first, 5),
            "difference_ci95": _percentiles(own - other),
        }
    }
    if "field" in found:
        result["field"] = {name: round(v, 6) for name, v in found["field"].items()}
    if "tasks" in found:
        changes: dict[str, Array] = {}
        result["tasks"] = {}
        for task, entry in found["tasks"].items():
            changes[task] = _hits(entry) - _hits(base["tasks"][task])
            change = difference([changes[task]])
            result["tasks"][task] = {
                "n": entry["n"],
                "accuracy": round(entry["accuracy"], 5),
                "ci95": [round(bound, 5) for bound in entry["ci95"]],
                "difference": change["difference"],
                "difference_ci95": change["ci95"],
                "strength": entry["strength"],
            }
        mean = difference(list(changes.values()))
        result["mean"] = {
            "accuracy": round(sum(entry["accuracy"] for entry in found["tasks"].values()) / len(changes), 5),
            "difference": mean["difference"],
            "difference_ci95": mean["ci95"],
        }
    return result


def recovered(tuned: Mapping[str, Any], untuned: Mapping[str, Any], base: Mapping[str, Any], suite: Suite) -> Any:
    """Return the share of the gap to `base` that tuning closed: of STS-B, and of the fields' 1 - cosine.

    The share of STS-B is None where the gap's own interval holds 0: there is nothing that could be closed.
    """
    a, b, c = (resampled(each["cosines"], suite.grades) for each in (tuned, untuned, base))
    values = [_correlation(each["cosines"], suite.grades) for each in (tuned, untuned, base)]
    low, high = _percentiles(c - b)
    share: dict[str, Any] = {"gap": round(values[2] - values[1], 5), "gap_ci95": [low, high], "share": None}
    if low > 0:
        share["share"] = round((values[0] - values[1]) / (values[2] - values[1]), 4)
        share["ci95"] = _percentiles((a - b) / (c - b))
    before, after = (1 - each["field"]["mean_cosine"] for each in (untuned, tuned))
    return {"stsb": share, "field": {"gap": round(before, 6), "share": round((before - after) / before, 4)}}


def _correlation(cosines: Any, grades: Any) -> float:
    """Return Spearman's correlation, 0 where an encoder that broke gives every text the same field."""
    return spearman(cosines, grades) if np.ptp(cosines) and np.ptp(grades) else 0.0


def _percentiles(draws: Array) -> list[float]:
    return [round(float(bound), 5) for bound in np.percentile(draws, [2.5, 97.5])]


def _hits(entry: Mapping[str, Any]) -> Array:
    return np.array([digit == "1" for digit in entry["hits"]], np.float64)
