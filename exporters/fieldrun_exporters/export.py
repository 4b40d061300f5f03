"""Checkpoint -> bundle: `export` reads the inputs, a source runs the passes, and the writer writes and proves.

Read on in `student/source.py` and then in `writer.py`. An export that fails leaves nothing behind. The same checkpoint,
recipe, calibration text and library versions give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError, OutputExists, RecipeError, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bounds import least_cosine
from fieldrun.formats.progress import Progress, silent
from fieldrun.heads.trained import Checkpoint

from .calibrate import CalibrationText
from .encoder.model import ENCODER_FILE, Encoder
from .encoder.source import prepare_encoder
from .parity import BucketParity
from .recipe import Recipe, load_recipe
from .student.passes import PassReport
from .student.source import prepare_student
from .writer import Source, write_bundle

__all__ = ["ExportReport", "export"]

_ROUNDING = 1e-4  # what sums of float32 in another order change at most in a field's number
_IMPORTED = {
    "encoder": ("an encoder", ("fold", "lowrank", "int8", "palettize")),
    "onnx": ("a foreign graph", ("fold", "int8")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did: where, how big, what each pass changed, and how close every bucket is to the reference."""

    path: Path
    recipe: str
    bytes: int
    passes: tuple[PassReport, ...]
    parity: tuple[BucketParity, ...]
    operators: Mapping[str, Mapping[str, int]]
    proof: Mapping[str, Any]
    """`field`: how near all fields are to the reference's; `parts`: what each part alone costs them; `accuracy`."""
    warnings: tuple[str, ...] = ()
    """What works, but is slower, takes more memory, or has no effect: a line each, with the reason."""

    least_cosine: float = -1.0
    """What `fieldrun.formats.bounds` asks of a recipe of this kind."""

    @property
    def equal(self) -> bool:
        """Whether every field is the reference's within the rounding of float32."""
        return all(bucket.max_abs <= _ROUNDING for bucket in self.parity)

    @property
    def differs(self) -> bool:
        """Whether a field is farther from the reference's than recipes of this kind may change it."""
        return not min(bucket.min_cosine for bucket in self.parity) >= self.least_cosine

    def summary(self) -> str:
        """Return one line on how near the bundle is to its reference, on texts that no pass has seen."""
        texts = max(bucket.texts for bucket in self.parity)
        if self.equal and not self.differs:
            largest = max(bucket.max_abs for bucket in self.parity)
            return f"fields equal to the reference's within {largest:.1e}, which float32 rounds, on {texts} texts"
        found = self.proof["field"]
        return (
            f"{'differs from its reference: ' * self.differs}cosine to the reference's fields "
            f"{found['mean_cosine']:.4f} (lowest {min(bucket.min_cosine for bucket in self.parity):.4f}, bound "
            f"{self.least_cosine:g}), same nearest neighbour for {100 * found['rank_agreement']:.1f} % of {texts} texts"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"path": str(self.path), "differs": self.differs}


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "cpu-int8",
    calibration: Sequence[str] | None = None,
    data: Mapping[str, Dataset] | None = None,
    max_drop: float | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint as a bundle and prove it.

    Args:
        checkpoint: a checkpoint folder, or `"reference"`; a folder made by `fieldrun import-encoder`; or a folder with
            a foreign `model.onnx` and its `tokenizer.json`.
        out: the bundle folder to write; must not exist.
        recipe: the name of a shipped recipe, or the path of a `.toml` file.
        calibration: at least 16 real texts to calibrate and compare on; a shipped sample when None.
        data: task -> labelled rows that no pass has seen; how accuracy changes on them goes into `report.json`.
        max_drop: points of accuracy, as the mean over the tasks of `data`, that the passes may cost.
        progress: called with (phase, done, total).

    Raises:
        CheckpointError, RecipeError, UnknownName, InputTextError: an input is wrong.
        ParityError, ExportError: a graph differs from the reference, a pass failed its check, or accuracy falls
            by more than `max_drop`.
        UsageError, DatasetError: `max_drop` without `data` or not a number, or rows that do not fit their task.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    report, out, data = progress or silent, Path(out), data or {}
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    plan, kind = load_recipe(recipe), _kind(Path(checkpoint))
    if kind in _IMPORTED:
        _check_imported(kind, plan, data, max_drop)
    if max_drop is not None and (not data or not isinstance(max_drop, int | float) or not max_drop >= 0):
        raise UsageError(f"max_drop must be a number of points of accuracy on `data`, 0 or more; not {max_drop!r}")
    texts = CalibrationText(calibration, plan.calibration.texts)
    report("read", 0, 1)
    source: Source
    shortened: tuple[str, ...] = ()
    if kind == "encoder":
        encoder = Encoder.load(checkpoint)
        plan, shortened = plan.fitting(encoder.config.max_positions)
        source = prepare_encoder(encoder, plan, texts, report)
    elif kind == "onnx":
        from .foreign.read import read_foreign
        from .foreign.source import prepare_foreign

        model = read_foreign(Path(checkpoint))
        if model.max_tokens is not None:
            plan, shortened = plan.fitting(model.max_tokens)
        source = prepare_foreign(model, plan, texts, report)
    else:
        source = prepare_student(Checkpoint.load(checkpoint), plan, texts, report, data=data, max_drop=max_drop)
    source = replace(source, warnings=(*source.warnings, *shortened))
    written = write_bundle(out, source, plan, texts, report)
    return ExportReport(
        path=out,
        recipe=plan.name,
        bytes=written.bytes,
        passes=tuple(source.passes),
        parity=written.parity,
        operators=written.operators,
        proof=written.proof,
        warnings=source.warnings,
        least_cosine=least_cosine(plan.to_dict()),
    )


def _kind(folder: Path) -> str:
    """Return what `folder` holds: `"student"`, `"encoder"` or `"onnx"`; `CheckpointError` for a Hugging Face folder."""
    if (folder / "student.json").exists():
        return "student"
    if (folder / ENCODER_FILE).exists():
        return "encoder"
    if (folder / "model.onnx").exists():
        return "onnx"
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors*")):
        raise CheckpointError(
            f"{folder} is a Hugging Face folder: run 'fieldrun import-encoder {folder} -o ENCODER', then export ENCODER"
        )
    return "student"


def _check_imported(kind: str, plan: Recipe, data: Mapping[str, Dataset], max_drop: float | None) -> None:
    """Refuse what only a student has: labelled rows for its heads, some passes, and graphs for TensorRT."""
    what, passes = _IMPORTED[kind]
    if data or max_drop is not None:
        raise UsageError("an imported model has no heads whose accuracy could drop; leave out data and max_drop")
    for name in plan.passes:
        if name not in passes:
            raise RecipeError(f"{what} has no pass {name!r}; it has {', '.join(passes)}, as in --recipe encoder-int8")
    if plan.tensorrt is not None:
        raise RecipeError(f"[tensorrt] is for students, not for {what}; use --recipe encoder-int8 or one made from it")
