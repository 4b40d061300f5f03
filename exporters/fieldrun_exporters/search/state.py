"""What `compress` has done, kept in a folder, so that a run that was killed can continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldrun.errors import ExportError, StorageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.storage import read_json, sha256_bytes, write_json

__all__ = ["State", "rows_digest"]


class State:
    """Results by name, in a folder of their own inside the work folder; nothing else there is touched.

    Args:
        work: the work folder; made when missing.
        identity: what the results depend on; another identity has another folder.

    Raises:
        StorageError: the folder cannot be made or read.
        ExportError: the results of an earlier run are corrupt.
    """

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        digest = sha256_bytes(json.dumps(identity, sort_keys=True).encode("utf-8"))
        self.work = _folder(work / f"compress-{digest[:16]}")
        self._path = self.work / "state.json"
        self._identity = identity
        self.values = self._kept()

    def folder(self, scope: str) -> Path:
        """Return the folder for the clustered parts of a shape; `StorageError` if it cannot be made."""
        return _folder(self.work / scope.strip(", ").replace(" ", "-")) if scope else self.work

    def do(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result `name`, from `make` if it is not there yet."""
        if name not in self.values:
            self.put(name, make())
        return self.values[name]

    def put(self, name: str, value: Any) -> None:
        """Keep `value` under `name`."""
        self.values[name] = value
        write_json(self._path, {"identity": self._identity, "values": self.values})

    def _kept(self) -> dict[str, Any]:
        try:
            kept = read_json(self._path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror or error}; make it readable") from error
        except ValueError as error:
            raise self._corrupt(str(error)) from error
        identity = json.loads(json.dumps(self._identity))
        if not isinstance(kept, dict) or kept.get("identity") != identity or not isinstance(kept.get("values"), dict):
            raise self._corrupt("state.json has other content than compress writes")
        values: dict[str, Any] = kept["values"]
        return values

    def _corrupt(self, why: str) -> ExportError:
        return ExportError(f"the work folder {self.work} is corrupt: {why}; delete it and start again")


def rows_digest(data: Mapping[str, Dataset]) -> str:
    """Return the sha256 of the labelled rows of every task: names, texts and labels, and the files' own sha256."""
    rows = sorted((task, each.kind, each.sha256 or "", each.texts, each.labels) for task, each in data.items())
    return hashlib.sha256(json.dumps(rows).encode("utf-8")).hexdigest()


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the work folder {path}: {error.strerror or error}; choose another work folder"
        ) from error
    return path
