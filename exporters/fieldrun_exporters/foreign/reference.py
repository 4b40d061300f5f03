"""What a foreign graph gives before any change: in ONNX Runtime, in float32, each text alone and without padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array

from ..encoder.huggingface import hashes_of
from ..parity import one_line, open_session
from .read import ForeignModel

__all__ = ["Reference"]

_TOLERANCE = 1e-3  # of the largest number in the fields; sums in another order stay below 1e-5


class Reference:
    """An open session of the original graph.

    Raises:
        ExportError: ONNX Runtime cannot open the graph.
        CheckpointError: the files are no longer those that were read.
    """

    def __init__(self, model: ForeignModel) -> None:
        self._model, self._session = model, open_session(model.path)
        read = model.provenance["source"]["sha256"]
        hashes_of(model.path.parent, read, read)  # ONNX Runtime has opened them by their path

    def run(self, sequences: Sequence[Sequence[int]], length: int | None = None) -> Array:
        """Return what the graph gives for `sequences` as one batch, padded to `length` or the longest.

        Raises:
            ExportError: it cannot run them, or gives something of the wrong rank.
        """
        model = self._model
        width = length or max(len(ids) for ids in sequences)
        ids = np.full((len(sequences), width), model.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        values = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
        feeds = {
            each.name: values[each.role].astype(helper.tensor_dtype_to_np_dtype(each.dtype)) for each in model.inputs
        }
        try:
            found: Array = self._session.run([model.output], feeds)[0]
        except Exception as error:  # onnxruntime's own kinds are not importable by name
            raise ExportError(
                f"ONNX Runtime cannot run model.onnx on a text of {width} tokens: {one_line(error)}; if the model has "
                "fewer positions, set shorter buckets.lengths in a recipe of your own"
            ) from error
        if found.ndim not in (2, 3) or len(found) != len(ids) or (found.ndim == 3 and found.shape[1] != width):
            raise ExportError(
                f"model.onnx gives {model.output!r} of shape {found.shape} for ids {ids.shape}; it must be a field "
                "(batch, dim) or token states (batch, length, dim)"
            )
        if found.dtype.kind != "f":
            raise ExportError(f"model.onnx gives {model.output!r} as {found.dtype}; a field must be floats")
        return found.astype(np.float32)

    def fields(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, int]:
        """Return the field of every sequence, `(n, dim) float32`, each alone, and the rank of the graph's output."""
        fields, rank = [], 2
        for ids in sequences:
            found = self.run([ids], self._model.length)
            rank = found.ndim
            fields.append(self._pool(found, [ids])[0])
        out = np.stack(fields)
        if not np.isfinite(out).all():
            raise ExportError("model.onnx gives NaN or infinity for the calibration text")
        return out, rank

    def check_batches(self, sequences: Sequence[Sequence[int]], alone: Array) -> None:
        """Check, where shapes are free, that a text's field depends neither on its batch nor on padding.

        `alone` are the fields of `sequences`.

        Raises:
            ExportError: it does; names the difference.
        """
        model, limit = self._model, _TOLERANCE * float(np.abs(alone).max())
        if model.length is not None:
            return
        lengths = sorted({len(ids) for ids in sequences}, key=lambda n: -sum(len(ids) == n for ids in sequences))
        rows = [i for i, ids in enumerate(sequences) if len(ids) == lengths[0]][:4]
        if model.batch is None and len(rows) > 1:
            together = self._pool(self.run([sequences[i] for i in rows]), [sequences[i] for i in rows])
            gap = float(np.abs(together - alone[rows]).max())
            if not gap <= limit:
                raise ExportError(
                    f"model.onnx gives a text another field in a batch with other texts (by up to {gap:.3g}); methods "
                    "that depend on the batch, such as dynamic quantization, are refused: give the float model"
                )
        short = min(range(len(sequences)), key=lambda i: len(sequences[i]))
        padded = self._pool(self.run([sequences[short]], len(sequences[short]) + 5), [sequences[short]])
        gap = float(np.abs(padded[0] - alone[short]).max())
        if not gap <= limit:
            raise ExportError(
                f"model.onnx gives a padded text another field (by up to {gap:.3g}): it does not ignore padding "
                f"(id {model.pad_id}); export it with an attention_mask that it uses"
            )

    def _pool(self, found: Array, sequences: Sequence[Sequence[int]]) -> Array:
        """Return fields, `(n, dim)`, of what `run` gave for `sequences`."""
        if found.ndim == 3 and self._model.pooling == "cls":
            found = found[:, 0]
        elif found.ndim == 3:
            found = np.stack([states[: len(ids)].mean(0) for states, ids in zip(found, sequences, strict=True)])
        else:
            return found
        if self._model.normalize:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
        return found
