"""The model that answers now, and the step to the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import BundleError, FieldrunError
from fieldrun.formats.bundle import MANIFEST, Bundle, resolve_bundle
from fieldrun.formats.storage import parse_json, read_json
from fieldrun_runtimes.model import FieldModel
from fieldrun_runtimes.verify import verify

__all__ = ["Current", "Served"]

_SHORT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A loaded model, the sha256 of its manifest, and when it was loaded, in seconds since 1970.

    A request takes one `Served` and uses nothing else, so that no answer is made of two models. The memory of a model
    that was replaced is freed when its last request ends, because nothing refers to it any more.
    """

    model: FieldModel[str | None]
    sha256: str
    loaded: float

    @property
    def short(self) -> str:
        """The first digits of `sha256`, which name the bundle in every answer."""
        return self.sha256[:_SHORT]

    def about(self) -> dict[str, Any]:
        """Return what `/health` says of the bundle."""
        model = self.model
        return {
            "name": model.manifest.name,
            "recipe": model.manifest.recipe["name"],
            "sha256": self.sha256,
            "engine": model.engine,
            "loaded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded)),
            "tasks": {task: model.kind(task) for task in model.tasks},
        }


class Current:
    """The bundle at `path`: `served` is the model that answers, `error` why a newer bundle there could not be loaded.

    `settings` are the engine, provider, threads, overflow and unknown of `fieldrun.load`.

    Raises:
        BundleError: the bundle does not give the answers that its export measured.
        FieldrunError: as `fieldrun.load` raises.
    """

    def __init__(self, path: str | Path, **settings: Any) -> None:
        self._path, self._settings = path, settings
        self._lock = threading.Lock()
        self.error: FieldrunError | None = None
        self.served = _open(path, settings)

    def refresh(self) -> bool:
        """Load the bundle that `path` leads to now, unless it is the one that answers; return whether it was replaced.

        Raises:
            FieldrunError: it cannot be loaded or fails verification. The old model keeps answering.
        """
        with self._lock:
            try:
                if _sha256_at(resolve_bundle(self._path)) == self.served.sha256:
                    self.error = None
                    return False
                served = _open(self._path, self._settings)
            except FieldrunError as error:
                self.error = error
                raise
            except BaseException as error:  # a panic of the tokenizer is no Exception; the old model must survive it
                self.error = BundleError(f"{self._path} cannot be loaded: {type(error).__name__}: {error}")
                raise self.error from error
            self.served, self.error = served, None
            return True


def _open(path: str | Path, settings: Mapping[str, Any]) -> Served:
    """Read the bundle at `path` once, verify it and load it; the folder may change at any time."""
    bundle = Bundle.load(path)
    runs_on = {name: value for name, value in settings.items() if name not in ("overflow", "unknown")}
    # the engine null answers nothing: it is there to measure the service
    if settings["engine"] != "null" and not verify(bundle, **runs_on).passed:
        raise BundleError(
            f"{bundle.path} does not give the answers that its export measured; see: fieldrun verify {bundle.path}"
        )
    return Served(
        model=FieldModel(bundle, **settings),
        sha256=str(parse_json(bundle.contents[MANIFEST], MANIFEST)["sha256"]),
        loaded=time.time(),
    )


def _sha256_at(folder: Path) -> str:
    """Return what the manifest in `folder` says its own hash is now: whether there is something to load."""
    try:
        return str(read_json(folder / MANIFEST)["sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{folder} has no readable {MANIFEST}; copy the bundle again") from error
