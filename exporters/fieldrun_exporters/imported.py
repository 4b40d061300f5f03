"""Folders that are no student's checkpoint and export all the same: imported encoders and foreign ONNX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fieldrun.errors import CheckpointError, RecipeError
from fieldrun.formats.progress import Progress

from .calibrate import CalibrationText, tokenize
from .encoder.model import ENCODER_FILE, Encoder
from .encoder.source import prepare_encoder
from .recipe import Recipe
from .student.passes import PassReport
from .writer import GraphSource, WrittenGraph, write_graph_bundle

__all__ = ["export_imported", "imported_kind"]

_PASSES = {"encoder": ("fold", "lowrank", "int8", "palettize"), "onnx": ("fold", "int8")}


def imported_kind(path: str | Path) -> str | None:
    """Return `"encoder"` or `"onnx"` for the folders that `export_imported` takes, None for any other.

    Raises:
        CheckpointError: it is a Hugging Face folder, which is imported first.
    """
    folder = Path(path)
    if (folder / "student.json").exists():
        return None
    if (folder / ENCODER_FILE).exists():
        return "encoder"
    if (folder / "model.onnx").exists():
        return "onnx"
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors*")):
        raise CheckpointError(
            f"{folder} is a Hugging Face folder: run 'fieldrun import-encoder {folder} -o ENCODER', then export ENCODER"
        )
    return None


def export_imported(
    kind: str,
    path: str | Path,
    out: Path,
    plan: Recipe,
    calibration: Sequence[str] | None,
    progress: Progress,
) -> tuple[WrittenGraph, Sequence[PassReport]]:
    """Export the folder `path`, of a kind that `imported_kind` gave, to the bundle `out`.

    Raises:
        CheckpointError, RecipeError, InputTextError: an input is wrong, or the recipe is a student's.
        ParityError, ExportError: a graph differs from the reference, or a pass did not do what it says.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    for name in plan.passes:
        if name not in _PASSES[kind]:
            what = {"encoder": "an encoder", "onnx": "a foreign graph"}[kind]
            raise RecipeError(
                f"{what} has no pass {name!r}; it has {', '.join(_PASSES[kind])}, as in --recipe encoder-int8"
            )
    texts, longest = CalibrationText(calibration, plan.calibration.texts), plan.buckets.lengths[-1]
    progress("read", 0, 1)
    source: GraphSource
    if kind == "encoder":
        encoder = Encoder.load(path)
        seen, proven = (tokenize(encoder, part, longest) for part in (texts.calibration, texts.proof))
        source, expected = prepare_encoder(encoder, plan, seen, proven, progress)
    else:
        from .foreign.read import read_foreign
        from .foreign.source import prepare_foreign

        model = read_foreign(Path(path))
        seen, proven = (tokenize(model, part, longest) for part in (texts.calibration, texts.proof))
        source, expected = prepare_foreign(model, plan, seen, proven, progress)
    return write_graph_bundle(out, source, plan, texts, proven, expected, progress), source.passes
