"""fieldrun's own subjects: a bundle on one engine, and the Rust tokenizer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fieldrun
from fieldrun.errors import UnknownName
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import sha256_file
from fieldrun_runtimes.engines import Engine, open_engine

from .subject import SubjectSpec

__all__ = ["BundleSubject", "TokenizerSubject"]

_PROGRAM = """
import fieldrun
with fieldrun.load({path!r}, engine={engine!r}, threads={threads}) as model:
    model.{call}
"""
_TOKENIZER_PROGRAM = """
from tokenizers import Tokenizer
Tokenizer.from_file({path!r}).encode("a gripping film").ids
"""

_EXTRAS = {"onnxruntime": "ort"}


class BundleSubject:
    """Text in, the labels of all single tasks out, or of the one that the spec names."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._model = fieldrun.load(spec.place, engine=spec.variant, threads=spec.threads)
        self._threads, self._task = spec.threads, spec.task
        single = [task for task in self._model.tasks if self._model.kind(task) == "single"]
        if spec.task and spec.task not in single:
            raise UnknownName("single task", spec.task, single)
        self._tasks = [spec.task] if spec.task else single
        self._stage: Engine | None = None

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the program of a first label."""
        call = f'predict(["a gripping film"], {spec.task!r})' if spec.task else 'predict_all(["a gripping film"])'
        return _PROGRAM.format(path=spec.place, engine=spec.variant, threads=spec.threads, call=call)

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return fieldrun, with the extra of its engine."""
        return (f"fieldrun[{_EXTRAS[spec.variant]}]" if spec.variant in _EXTRAS else "fieldrun",)

    def run(self, texts: list[str]) -> object:
        """Return the labels of every single task, one forward pass for all, or of the one task."""
        return self._model.predict(texts, self._task) if self._task else self._model.predict_all(texts)

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return `tokenize` (text to token ids) and `engine` (token ids to field and logits)."""
        if self._stage is None:  # an engine of its own, opened after memory was read
            self._stage = open_engine(self._model.engine, Bundle.load(self._model.path).exported(), self._threads)
        engine, texts = self._stage, [text]
        ids = self._model.token_ids(texts)[:1]
        return {"tokenize": lambda: self._model.token_ids(texts), "engine": lambda: engine.run(ids)}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of each text, special tokens included."""
        counts: list[int] = self._model.encode(list(texts)).tokens.tolist()
        return counts

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return the single tasks, or the one."""
        return {task: self._model.labels(task) for task in self._tasks}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return the labels of one task."""
        return self._model.predict(texts, task)

    def about(self) -> dict[str, Any]:
        """Return artifact, engine and why it was taken."""
        bundle = Bundle.load(self._model.path)
        manifest = bundle.manifest
        return {
            "artifact": {
                "name": manifest.name,
                "recipe": str(manifest.recipe.get("name", "unnamed")),
                "bytes": bundle.total_bytes(),
                "parameters": manifest.network.parameters,
                "licence": manifest.licence,
                "sha256": {
                    "manifest.json": sha256_file(bundle.path / "manifest.json"),
                    "weights.safetensors": manifest.files["weights.safetensors"].sha256,
                    "tokenizer.json": manifest.files["tokenizer.json"].sha256,
                },
            },
            "engine": self._model.engine,
            "engine_reason": self._model.engine_reason,
            "answers": f"the label of {self._task}"
            if self._task
            else f"the labels of all {len(self._tasks)} single tasks",
        }

    def close(self) -> None:
        """Close the model."""
        self._model.close()


class TokenizerSubject:
    """The Rust tokenizer of a bundle, from text to ids: what every other subject pays at least."""

    def __init__(self, spec: SubjectSpec) -> None:
        from tokenizers import Tokenizer

        path = Bundle.load(spec.place).path / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._about = {"bytes": path.stat().st_size, "sha256": {"tokenizer.json": sha256_file(path)}}

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the program of a first text's ids."""
        return _TOKENIZER_PROGRAM.format(path=str(Bundle.load(spec.place).path / "tokenizer.json"))

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return the tokenizer's package."""
        del spec
        return ("tokenizers",)

    def run(self, texts: list[str]) -> object:
        """Return token ids."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return nothing: it is a stage itself."""
        del text
        return {}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of each text."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return nothing."""
        return {}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Raise, for there is no task."""
        del texts
        raise UnknownName("task", task, [])

    def about(self) -> dict[str, Any]:
        """Return the tokenizer's file."""
        return {"artifact": {"name": "tokenizer.json", **self._about}, "answers": "token ids"}

    def close(self) -> None:
        """Do nothing."""
