"""The Python package of each target, imported when first needed, and a logger for it that prints nothing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from fieldrun.errors import EngineError, MissingDependency, UnknownName

from ..engines.packages import importing

__all__ = ["MODULES", "OLDEST", "load_library", "quiet_logger"]

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Target -> the import names of its Python package; the first that is installed is taken."""

OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 1)}  # JetPack 6.1 and later have TensorRT 10.3

_COMMANDS = {"tensorrt": "apt-get install python3-libnvinfer on a Jetson, pip install tensorrt elsewhere"}
"""How to install a package that is not in the extra of its target: TensorRT's comes from NVIDIA."""


def load_library(target: str) -> ModuleType:
    """Import the package of `target`.

    Raises:
        UnknownName: no such target.
        MissingDependency: it is not installed.
        EngineError: it is installed and cannot be imported, or it is too old.
    """
    if target not in MODULES:
        raise UnknownName("target", target, list(MODULES))
    missing = MissingDependency(MODULES[target][0], target, _COMMANDS.get(target))
    for name in MODULES[target]:
        try:
            with importing(name, missing):
                library = importlib.import_module(name)
        except MissingDependency:
            continue
        version = str(library.__version__)
        oldest = OLDEST[target]
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            raise EngineError(f"{target} {version} is too old: {'.'.join(map(str, oldest))} or later is needed")
        return library
    raise missing


class _Log:
    """Keeps errors and the listing of layers, and prints nothing; comes before TensorRT's ILogger among the bases."""

    def __init__(self, worst: tuple[Any, ...]) -> None:
        super().__init__()
        self._worst = worst
        self.errors: list[str] = []
        self.layers: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in self._worst:
            self.errors.append(message)
        elif "LayerType: " in message:
            self.layers += message.splitlines()

    def words(self) -> str:
        return "; ".join(" ".join(text.split()) for text in self.errors[-2:]) or "no reason given"


def quiet_logger(library: ModuleType) -> Any:
    """Return a logger for `library` with `errors`, `layers` and `words()`, the last errors on one line."""
    kind: Any = type("Log", (_Log, library.ILogger), {})
    return kind((library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR))
