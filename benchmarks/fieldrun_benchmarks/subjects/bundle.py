"""A bundle on one engine: text in, labels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fieldrun.errors import UnknownName
from fieldrun.formats.bundle import MANIFEST, Bundle
from fieldrun.formats.storage import sha256_bytes
from fieldrun_runtimes.engines import Engine, open_engine
from fieldrun_runtimes.model import FieldModel

from ..harness.subject import Subject, SubjectSpec

__all__ = ["BundleSubject"]

_PROGRAM = """
import fieldrun
with fieldrun.load({path!r}, engine={engine!r}, threads={threads}) as model:
    model.{call}
"""
_EXTRAS = {"onnxruntime": "ort"}
_HASHED = ("weights.safetensors", "tokenizer.json")


class BundleSubject(Subject):
    """Answers the labels of all single tasks, or of the one task that its name gives."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._bundle = Bundle.load(spec.place)
        self._model = FieldModel(self._bundle, engine=spec.variant, threads=spec.threads)
        self._threads, self._task = spec.threads, spec.task
        single = [task for task in self._model.tasks if self._model.kind(task) == "single"]
        if spec.task and spec.task not in single:
            raise UnknownName("single task", spec.task, single)
        self._tasks = [spec.task] if spec.task else single
        self._engine: Engine | None = None

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the program that gives the labels of one text."""
        call = f'predict(["a gripping film"], {spec.task!r})' if spec.task else 'predict_all(["a gripping film"])'
        return _PROGRAM.format(path=spec.place, engine=spec.variant, threads=spec.threads, call=call)

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return fieldrun, with the extra of its engine."""
        return (f"fieldrun[{_EXTRAS[spec.variant]}]" if spec.variant in _EXTRAS else "fieldrun",)

    def run(self, texts: list[str]) -> object:
        """Return the labels of every single task from one forward pass, or those of the one task."""
        return self._model.predict(texts, self._task) if self._task else self._model.predict_all(texts)

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return `tokenize` (text to token ids) and `engine` (token ids to field and logits)."""
        if self._engine is None:  # a second engine, opened only now: it must not count in the memory of the first
            self._engine = open_engine(self._model.engine, self._bundle.exported(), self._threads)
        engine, texts = self._engine, [text]
        ids = self._model.token_ids(texts)
        return {"tokenize": lambda: self._model.token_ids(texts), "engine": lambda: engine.run(ids)}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return the number of tokens of each text, special tokens included."""
        return [len(ids) for ids in self._model.token_ids(list(texts))]

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return the labels of the tasks that it answers."""
        return {task: self._model.labels(task) for task in self._tasks}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return the labels of one task."""
        return self._model.predict(texts, task)

    def about(self) -> dict[str, Any]:
        """Return the artifact, the engine, and why this engine was chosen."""
        bundle, manifest = self._bundle, self._bundle.manifest
        answers = f"the label of {self._task}" if self._task else f"the labels of all {len(self._tasks)} single tasks"
        return {
            "artifact": {
                "name": manifest.name,
                "recipe": str(manifest.recipe.get("name", "unnamed")),
                "bytes": bundle.total_bytes(),
                "parameters": manifest.network.parameters,
                "licence": manifest.licence,
                "sha256": {
                    MANIFEST: sha256_bytes(bundle.contents[MANIFEST]),
                    **{name: manifest.files[name].sha256 for name in _HASHED if name in manifest.files},
                },
            },
            "engine": self._model.engine,
            "engine_reason": self._model.engine_reason,
            "answers": answers,
        }

    def close(self) -> None:
        """Close the model."""
        self._model.close()
