"""Distillation: train a student and its heads from a frozen Hugging Face encoder (extra `distill`).

`fieldrun.distill()` calls `distill`. The modules of this package import torch; this one does not.
"""

from __future__ import annotations

import inspect
import os
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fieldrun.errors import MissingDependency
from fieldrun.formats.progress import Progress, silent

if TYPE_CHECKING:
    from fieldrun.heads.trained import Checkpoint

__all__ = ["distill"]


def distill(
    recipe: str | os.PathLike[str],
    data: str | os.PathLike[str],
    teacher: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    work: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Train a student with heads from a teacher, write the checkpoint folder `out`, and return the checkpoint.

    An interrupted run is resumed by the same call.

    Args:
        recipe: the name of a shipped recipe, or the path of a `.toml` file.
        data: a folder with one folder per task (`train.tsv`, and `dev.tsv` or `test.tsv` to report on) and, if the
            recipe has a corpus, `corpus/<name>.txt`.
        teacher: a Hugging Face encoder folder: `config.json`, `model.safetensors`, `tokenizer.json`.
        out: the checkpoint to write; must not exist.
        work: the folder of the intermediate files that resuming needs; `<out>.work` by default.
        threads: CPU threads of torch; all by default.
        progress: called with (phase, done, total).

    Raises:
        MissingDependency: torch or transformers is not installed.
        FieldrunError: a recipe, data, teacher or folder that cannot be used; the message says which, and what to do.
    """
    for package in ("torch", "transformers"):
        if util.find_spec(package) is None:
            raise MissingDependency(package, "distill")
    from .pipeline import run

    return run(
        Path(recipe), Path(data), Path(teacher), Path(out), None if work is None else Path(work), threads, progress
    )


class _Callable(ModuleType):
    """Lets `fieldrun.distill` be this package and the function at once."""

    __call__ = staticmethod(distill)
    __signature__ = inspect.signature(distill)


sys.modules[__name__].__class__ = _Callable
