"""What a run of `compress` works on: the student, its texts and labelled rows, and the work folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import write_tensors
from fieldrun.heads.trained import Checkpoint

from ..calibrate import CalibrationText, tokenize
from ..export import ExportReport, export
from ..recipe import Recipe
from ..student.deployed import Deployed
from ..student.drop import accuracy_drop
from .state import State, rows_digest

__all__ = ["Inputs", "identity"]

_METHOD = 4  # raised when the same settings give another front, so that an old work folder is not used


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of a run. `base` gives the buckets, `folded` is the student in float32."""

    checkpoint: str | Path
    source: Checkpoint
    folded: Deployed
    base: Recipe
    texts: CalibrationText
    calibration: Sequence[str] | None
    data: Mapping[str, Dataset]
    state: State
    report: Progress

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, cut to the longest bucket."""
        return tokenize(self.source, texts, self.base.buckets.lengths[-1])

    def accuracy(self, name: str, make: Callable[[], Deployed]) -> dict[str, Any]:
        """Return what the form that `make` gives costs on the labelled rows, by `accuracy_drop`; kept under `name`."""

        def measure() -> dict[str, Any]:
            before, after = (self.source, self.folded), (self.source, make())
            return accuracy_drop(before, after, self.data, self.base.buckets.lengths[-1])

        found: dict[str, Any] = self.state.do(f"accuracy of {name}, {rows_digest(self.data)}", measure)
        return found

    def export(self, out: Path, recipe: Path, *, data: Mapping[str, Dataset] | None = None) -> ExportReport:
        """Export the student to `out`."""
        return export(
            self.checkpoint, out, recipe=recipe, calibration=self.calibration, data=data, progress=self.report
        )


def identity(folded: Deployed, texts: CalibrationText, seed: int) -> dict[str, Any]:
    """Return what the results in a work folder depend on."""
    counts = {} if folded.usage is None else {"usage": folded.usage}
    return {
        "method": _METHOD,
        "checkpoint": sha256_bytes(write_tensors(dict(folded.tensors) | counts)),
        "texts": sha256_bytes("\n".join(texts.chosen).encode("utf-8")),
        "seed": seed,
    }
