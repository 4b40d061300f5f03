"""Heads that were attached to a bundle after its export: reading them, and saving a bundle with them.

They are not part of the graphs. `heads.safetensors` has their `<task>.weight` and `<task>.bias`, the manifest's tasks
their labels and temperatures, its `provenance["heads"]` the results of their training, and `golden.json` their answers
to the golden texts, computed from the fields that the export measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, CheckpointError, OutputExists
from ..formats.bundle import HEADS_FILE, MANIFEST, SCHEMA, Bundle, TaskSpec
from ..formats.integrity import entry_of
from ..formats.storage import new_folder, parse_json, write_bytes, write_json
from ..formats.tensors import Array, shortest, write_tensors
from .head import Head, attached_task, head_logits, pair_features, softmax

__all__ = ["head_scores", "read_heads", "save_bundle"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SECTION = "\n## Heads attached after the export\n"


def read_heads(bundle: Bundle) -> dict[str, Head]:
    """Return the heads that were attached to `bundle`, by name; none for a bundle as exported.

    Raises:
        BundleError: `heads.safetensors` does not have the heads that the manifest names.
    """
    tasks = [task for task in bundle.manifest.tasks if task.attached]
    if not tasks:
        return {}
    about = bundle.manifest.provenance.get("heads")
    try:
        tensors = bundle.tensors(HEADS_FILE)
        if set(tensors) != {f"{task.name}.{part}" for task in tasks for part in ("weight", "bias")}:
            raise ValueError("its tensors are not those of the manifest's heads")
        heads = {task.name: _head(task, tensors, about) for task in tasks}
        for head in heads.values():
            head.validate(bundle.manifest.network.field_dim)
    except (CheckpointError, ValueError) as error:
        raise BundleError(f"{bundle.path}: {HEADS_FILE} cannot be used ({error}); copy it again") from error
    return heads


def _head(task: TaskSpec, tensors: Mapping[str, Array], about: Any) -> Head:
    own = about.get(task.name) if isinstance(about, Mapping) else None
    return Head(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        weight=tensors[f"{task.name}.weight"],
        bias=tensors[f"{task.name}.bias"],
        temperature=float(task.temperature),
        about=own if isinstance(own, Mapping) else {},
    )


def head_scores(head: Head, a: Array, b: Array | None = None) -> Array:
    """Return the probabilities `(n, labels) float32` of `head` for fields `a (n, dim)`, or for pairs of fields."""
    return softmax(head_logits(head, a if b is None else pair_features(a, b)), head.temperature)


def save_bundle(bundle: Bundle, heads: Mapping[str, Head], path: Path, *, overwrite: bool = False) -> None:
    """Write `bundle` with `heads` instead of those attached so far; an error leaves nothing behind.

    Raises:
        OutputExists: `path` exists and `overwrite` is not set, is not a bundle, or is inside the installed package.
        BundleError: its golden texts cannot be used.
        StorageError: the folder cannot be written.
    """
    if str(path) == "reference" or path.resolve().is_relative_to(_PACKAGE):
        raise OutputExists(f"{path} is the bundle that comes with fieldrun; save to a folder of your own")
    if overwrite and os.path.lexists(path) and (path.is_symlink() or not (path / MANIFEST).is_file()):
        raise OutputExists(f"{path} exists and is not a bundle; choose another folder or delete it first")
    exported = bundle.exported()
    with new_folder(path, replace=overwrite) as folder:
        for name in exported.manifest.files:
            write_bytes(folder / name, bundle.contents[name])
        _write_golden(folder, bundle, heads)
        _write_card(folder, heads)
        files = {name: entry_of(folder / name) for name in exported.manifest.files}
        if heads:
            tensors = {f"{name}.weight": head.weight for name, head in heads.items()}
            tensors |= {f"{name}.bias": head.bias for name, head in heads.items()}
            write_bytes(folder / HEADS_FILE, write_tensors(tensors))
            files[HEADS_FILE] = entry_of(folder / HEADS_FILE)
        provenance = {key: value for key, value in bundle.manifest.provenance.items() if key != "heads"}
        provenance |= {"heads": {name: dict(head.about) for name, head in heads.items()}} if heads else {}
        manifest = replace(
            exported.manifest,
            schema=SCHEMA,
            tasks=(*exported.manifest.tasks, *map(attached_task, heads.values())),
            provenance=provenance,
            files=files,
        )
        write_json(folder / MANIFEST, manifest.to_dict())


def _write_golden(folder: Path, bundle: Bundle, heads: Mapping[str, Head]) -> None:
    try:
        golden = parse_json(bundle.contents["golden.json"], "golden.json")
        fields = np.array(golden["fields"], np.float32)
        gone = {task.name for task in bundle.manifest.tasks if task.attached}
        scores = {name: values for name, values in golden["scores"].items() if name not in gone}
        for name, head in heads.items():
            after = np.roll(fields, -1, axis=0) if head.kind == "pair" else None
            scores[name] = [[shortest(x) for x in row] for row in head_scores(head, fields, after)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: golden.json cannot be used ({error}); export again") from error
    write_json(folder / "golden.json", golden | {"scores": scores})


def _write_card(folder: Path, heads: Mapping[str, Head]) -> None:
    text = (folder / "CARD.md").read_text("utf-8", errors="replace").split(_SECTION)[0]
    if heads:
        lines = ["", *(_in_words(head) for head in heads.values())]
        text = text.rstrip("\n") + "\n" + _SECTION + "\n".join(lines) + "\n"
    write_bytes(folder / "CARD.md", text.encode("utf-8"))


def _in_words(head: Head) -> str:
    line = f"- `{head.name}`: {len(head.labels)} labels"
    if isinstance(head.about.get("n"), int):
        line += f", trained on {head.about['n']} {'pairs' if head.kind == 'pair' else 'texts'}"
    cv = head.about.get("cv")
    if isinstance(cv, Mapping) and isinstance(cv.get("accuracy"), float):
        low, high = cv["ci95"]
        line += f", held-out accuracy {cv['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {cv['n']})"
    return line + "."
