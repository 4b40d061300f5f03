"""The methods that users of sentence-transformers expect of an encoder, on top of a model's fields.

Names, defaults and shapes are those of sentence-transformers, so that code written for it takes a `FieldModel`. What
only a PyTorch model can do is refused by name.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import UsageError
from fieldrun.evaluation.rows import as_list, check_texts, run_located

__all__ = ["SentenceEncoder"]

Floats = npt.NDArray[np.float32]


class SentenceEncoder(ABC):
    """What follows from `field`: embeddings of sentences, and how similar they are."""

    similarity_fn_name = "cosine"

    @abstractmethod
    def field(self, texts: Iterable[str], *, dim: int | None = None) -> Floats:
        """Return the meaning field of each text, `(n, dim) float32`."""

    @abstractmethod
    def get_embedding_dimension(self) -> int:
        """Return the length of an embedding."""

    def get_sentence_embedding_dimension(self) -> int:
        """Return the length of an embedding, as `get_embedding_dimension` does."""
        return self.get_embedding_dimension()

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Floats:
        """Return the embedding of a text, `(dim,) float32`, or of each text in a list, `(n, dim) float32`.

        Args:
            sentences: a string or a list of strings; an empty list gives `(0, dim)`.
            prompt: put before each text.
            batch_size: how many texts are handed to the engine at once; the result does not depend on it.
            show_progress_bar: count the texts on stderr.
            convert_to_tensor: return a torch tensor on the CPU; the caller imports torch.
            convert_to_numpy: if False, return a list of torch tensors.
            normalize_embeddings: scale each embedding to length 1.
            truncate_dim: keep the first numbers of each embedding; done before scaling.
            prompt_name, output_value, precision, device: only what a bundle has: no named prompts, sentence embeddings
                in float32, on the device that `fieldrun.load` was given.

        Raises:
            InputTextError, TextTooLong: as `forward`.
            UsageError: an argument has a value that this model does not support.
        """
        if prompt is None and prompt_name is not None:
            raise UsageError(f"a bundle has no named prompts; give prompt=..., not prompt_name={prompt_name!r}")
        if output_value != "sentence_embedding" or precision not in ("float32", None):
            raise UsageError(f"encode returns sentence embeddings in float32, not {output_value!r} in {precision!r}")
        if str(device) not in ("None", "cpu"):
            raise UsageError(f"choose the device with fieldrun.load(engine=..., provider=...), not device={device!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size must be a positive integer, not {batch_size!r}")
        found = self._embed(sentences, prompt or "", batch_size, bool(show_progress_bar), truncate_dim)
        if normalize_embeddings:
            found = _unit(found)
        if isinstance(sentences, str):
            found = found[0]
        if convert_to_tensor or not convert_to_numpy:
            tensor: Any = _torch().from_numpy(found)  # typed as an array: the runtime does not know torch
            return tensor if convert_to_tensor or isinstance(sentences, str) else list(tensor)  # type: ignore[return-value]
        return found

    encode_query = encode
    encode_document = encode

    def similarity(
        self, embeddings1: npt.ArrayLike | Iterable[str], embeddings2: npt.ArrayLike | Iterable[str]
    ) -> Floats:
        """Return the cosine of each of `embeddings1` with each of `embeddings2`, `(n, m) float32`.

        Either is an array `(n, dim)` or `(dim,)`, or texts, which are encoded first.

        Raises:
            UsageError: the embeddings are not of the same length, or not numbers.
            InputTextError, TextTooLong: as `forward`.
        """
        a, b = self._comparable(embeddings1, embeddings2)
        cosines: Floats = np.clip(_unit(a) @ _unit(b).T, -1, 1)
        return cosines

    def similarity_pairwise(
        self, embeddings1: npt.ArrayLike | Iterable[str], embeddings2: npt.ArrayLike | Iterable[str]
    ) -> Floats:
        """Return the cosine of `embeddings1[i]` with `embeddings2[i]`, `(n,) float32`; otherwise as `similarity`."""
        a, b = self._comparable(embeddings1, embeddings2)
        if len(a) != len(b):
            raise UsageError(f"{len(a)} embeddings against {len(b)}; give pairs, or use similarity for a matrix")
        cosines: Floats = np.clip((_unit(a) * _unit(b)).sum(1), -1, 1)
        return cosines

    def _embed(self, sentences: str | Iterable[str], prompt: str, size: int, show: bool, dim: int | None) -> Floats:
        texts: list[str] = [sentences] if isinstance(sentences, str) else as_list(sentences, "sentences")
        if not texts:
            return np.zeros((0, dim or self.get_embedding_dimension()), np.float32)
        check_texts(texts)
        parts = []
        prompted = [prompt + text for text in texts] if prompt else texts
        run = partial(self.field, dim=dim)
        for start in range(0, len(texts), size):
            parts.append(run_located(run, prompted[start : start + size], "text {}".format, start=start))
            if show:
                done = min(start + size, len(texts))
                sys.stderr.write(f"\rencode {done}/{len(texts)}" + "\n" * (done == len(texts)))
        return np.concatenate(parts)

    def _comparable(self, *both: npt.ArrayLike | Iterable[str]) -> tuple[Floats, Floats]:
        a, b = (self._as_embeddings(values) for values in both)
        if a.shape[1] != b.shape[1]:
            raise UsageError(f"embeddings of {a.shape[1]} numbers against embeddings of {b.shape[1]}")
        return a, b

    def _as_embeddings(self, values: Any) -> Floats:
        if isinstance(values, str):
            return self.field([values])
        if isinstance(values, Iterator) or hasattr(values, "to_pylist"):
            values = as_list(values, "texts")
        first = next(iter(values), None) if hasattr(values, "__len__") else None
        if isinstance(first, str):
            return self.field(values)
        try:
            found = np.atleast_2d(np.asarray(values, np.float32))
        except (TypeError, ValueError) as error:
            raise UsageError(f"similarity takes arrays of embeddings or lists of texts ({error})") from error
        if found.ndim != 2:
            raise UsageError(f"embeddings must be of shape (n, dim) or (dim,), not {found.shape}")
        return found


def _unit(vectors: Floats) -> Floats:
    """Return `vectors (..., dim)` scaled to length 1; those of zeros stay."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Floats = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def _torch() -> Any:
    try:
        return sys.modules["torch"]  # whoever wants tensors has imported it; the runtime never does
    except KeyError:
        raise UsageError("torch is not imported; import it first, or leave out convert_to_tensor") from None
