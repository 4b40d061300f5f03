"""Find the labels that differ between engines on many texts, and how near the two best logits are there.

    python -m studies.flips.measure --data texts.txt -o benchmarks/records/flips.json

Every line is a text. The record was made of the first million lines of the open pool, `texts.txt` of
`fieldrun.distill.open_pool` with the recipe `open` and its seed. A line is tokenized once, and run by native, numpy and
onnxruntime in blocks, and by onnxruntime one text at a time. A pair task gets each text with the next one. A label is
the one with the largest logit.

A label can flip only if the two best logits are nearer to each other than twice the difference between engines. The
largest difference in the first half of the texts gives that bound; all texts are then held against it.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

import fieldrun
from fieldrun.errors import DatasetError, FieldrunError, InputTextError
from fieldrun.formats.bundle import Bundle, TaskSpec, resolve_bundle
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import softmax
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_runtimes.answers import parse_line
from fieldrun_runtimes.engines import Engine, open_engine

from ..stages import tell
from ..suite import artifact, output_option, study

__all__ = ["Fields", "Labels", "bound_of", "main"]

ENGINES = ("native", "numpy", "onnxruntime")
ALONE = "onnxruntime, one text at a time"
_BLOCK = 4096  # texts
_NEAR = 1e-3  # margins below it are kept


@dataclass(slots=True, kw_only=True)
class Fields:
    """The largest differences of each text's field, of float32, by two ways of running it."""

    gaps: dict[tuple[str, str], list[Array]] = field(default_factory=dict)

    def add(self, fields: Mapping[str, Array]) -> None:
        """Add the fields `(n, dim)` of a block of texts, by way."""
        for a, b in itertools.combinations(fields, 2):
            self.gaps.setdefault((a, b), []).append(np.abs(fields[a] - fields[b]).max(1))

    def summary(self) -> list[dict[str, Any]]:
        """Return, for two ways each, the largest difference, the median one, and the share of texts with none."""
        found = []
        for (a, b), parts in self.gaps.items():
            gaps = np.concatenate(parts)
            gap = {"max": float(gaps.max()), "median": float(np.median(gaps)), "same_bits": float((gaps == 0).mean())}
            found.append({"ways": [a, b], **gap})
        return found


@dataclass(slots=True, kw_only=True)
class Labels:
    """The labels of `task` by several ways: where they differ, and how near the two best logits are."""

    task: TaskSpec
    texts: int = 0
    largest: list[float] = field(default_factory=list)
    near: list[Array] = field(default_factory=list)
    flips: list[dict[str, Any]] = field(default_factory=list)

    def add(self, logits: Mapping[str, Array], lines: Sequence[int]) -> None:
        """Add the logits `(n, all labels)` of a block of texts, by way; `lines` are the numbers of the texts."""
        spec = self.task
        each = np.stack([value[:, spec.start : spec.start + len(spec.labels)] for value in logits.values()])
        self.texts += len(lines)
        self.largest.append(float((each.max(0) - each.min(0)).max()))
        second, first = np.moveaxis(np.partition(each, -2, axis=2)[..., -2:], 2, 0)
        margins, best = first - second, each.argmax(2)
        widest = margins.max(0)
        self.near.append(widest[widest < _NEAR])
        for row in np.flatnonzero((best != best[0]).any(0)).tolist():
            scores = np.sort(softmax(each[:, row], spec.temperature), axis=1)
            flip: dict[str, Any] = {"line": lines[row], "task": spec.name}
            flip["labels"] = {way: spec.labels[i] for way, i in zip(logits, best[:, row].tolist(), strict=True)}
            flip["margins"] = dict(zip(logits, margins[:, row].tolist(), strict=True))
            self.flips.append(
                flip | {"margin": float(widest[row]), "score_margin": float((scores[:, -1] - scores[:, -2]).max())}
            )

    def summary(self, bound: float) -> dict[str, Any]:
        """Return the counts; `bound` is a margin of logits."""
        near = np.concatenate(self.near)
        return {
            "kind": self.task.kind,
            "labels": len(self.task.labels),
            "texts": self.texts,
            "largest_difference": max(self.largest),
            "within_bound": int((near <= bound).sum()),
            "flips": len(self.flips),
            "flips_beyond_bound": sum(flip["margin"] > bound for flip in self.flips),
            "largest_margin_of_a_flip": max((flip["margin"] for flip in self.flips), default=None),
        }


def bound_of(labels: Sequence[Labels]) -> float:
    """Return twice the largest difference of a logit in the first half of the blocks."""
    return 2 * max(max(task.largest[: (len(task.largest) + 1) // 2]) for task in labels)


def _texts(path: Path, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield the first `count` lines of the file with their numbers, from 1 on."""
    try:
        with path.open("rb") as file:
            yield from enumerate(itertools.islice(file, count), 1)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error


def _tokenized(model: fieldrun.FieldModel, lines: Sequence[tuple[int, bytes]]) -> dict[int, list[int]]:
    """Return the token ids of the lines that are texts, by number."""
    good: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for number, line in lines:
        try:
            texts[number] = str(parse_line(line.rstrip(b"\r\n"), "", paired=False))
        except InputTextError:
            continue
    try:
        return dict(zip(texts, model.token_ids(texts.values()), strict=True))
    except InputTextError:  # one of them has no token
        for number, text in texts.items():
            try:
                good[number] = model.token_ids([text])[0]
            except InputTextError:
                continue
    return good


def _one_at_a_time(engine: Engine) -> Callable[[Sequence[Sequence[int]]], tuple[Array, Array]]:
    def run(sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        each = [engine.run([ids]) for ids in sequences]
        return np.concatenate([one for one, _ in each]), np.concatenate([one for _, one in each])

    return run


@study(__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A file with one text per line.")
@click.option("--lines", type=click.IntRange(2), default=1_000_000, show_default=True, help="The lines to read.")
@click.option("--bundle", default="reference", show_default=True, help="The bundle, by name or path.")
@output_option
def main(data: Path, lines: int, bundle: str, output: Path) -> None:
    """Write the record of the labels that flip between engines."""
    loaded = Bundle.load(resolve_bundle(bundle))
    engines = {name: open_engine(name, loaded.exported(), 1) for name in ENGINES}
    ways = {name: engine.run for name, engine in engines.items()} | {ALONE: _one_at_a_time(engines["onnxruntime"])}
    labels = [Labels(task=task) for task in loaded.manifest.tasks if not task.attached]
    fields, began, progress, read = Fields(), time.process_time(), tell(), 0
    digest = hashlib.sha256()
    with fieldrun.load(bundle, engine="null") as model:
        numbered = _texts(data, lines)
        while block := list(itertools.islice(numbered, _BLOCK)):
            read += len(block)
            digest.update(b"".join(line for _, line in block))
            if not (ids := _tokenized(model, block)):
                continue
            found = {way: run(list(ids.values())) for way, run in ways.items()}
            fields.add({way: one for way, (one, _) in found.items()})
            single = {way: logits for way, (_, logits) in found.items()}
            paired = {}
            if any(task.task.kind == "pair" for task in labels):
                for way, (one, _) in found.items():
                    paired[way] = engines[way.partition(",")[0]].run_pairs(one, np.roll(one, -1, axis=0))
            for task in labels:
                task.add(paired if task.task.kind == "pair" else single, list(ids))
            progress(read, lines)
    if not labels or not labels[0].texts:
        raise FieldrunError("nothing to compare; give a bundle with tasks and a file with texts")
    bound = bound_of(labels)
    values = {
        "artifact": artifact(loaded),
        "ways": list(ways),
        "lines": read,
        "texts": labels[0].texts,
        "lines_sha256": digest.hexdigest(),
        "fields": fields.summary(),
        "bound": bound,
        "tasks": {task.task.name: task.summary(bound) for task in labels},
        "flips": [flip for task in labels for flip in task.flips],
        "processor_s": round(time.process_time() - began),
    }
    write_record(output, "flips", f"python -m studies.flips.measure --data FILE --lines {read} -o RECORD", values)


if __name__ == "__main__":
    main()
