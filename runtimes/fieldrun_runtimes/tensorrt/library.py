"""The Python package of each target, imported when it is first needed, and a logger for it that prints nothing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from fieldrun.errors import EngineError, MissingDependency, UnknownName
from fieldrun_runtimes.tensorrt.releases import MODULES, OLDEST

__all__ = ["load_library", "quiet_logger"]

_COMMANDS = {"tensorrt": "apt-get install python3-libnvinfer on a Jetson, pip install tensorrt elsewhere"}
"""What brings a package that is not in the extra of its target: TensorRT's comes from NVIDIA."""


def load_library(target: str) -> ModuleType:
    """Import the package of `target`.

    Raises:
        UnknownName: no such target.
        MissingDependency: it is not installed.
        EngineError: it is installed but a library of it is missing, or it is too old.
    """
    if target not in MODULES:
        raise UnknownName("target", target, list(MODULES))
    for name in MODULES[target]:
        try:
            library = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise EngineError(f"{name} cannot be imported: {error}; install {target} again") from error
            continue
        except (ImportError, OSError) as error:  # the bindings are there, their shared libraries are not
            raise EngineError(f"{name} cannot be imported: {error}; install {target}'s libraries") from error
        version = str(library.__version__)
        oldest = OLDEST[target]
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            raise EngineError(f"{target} {version} is too old: {'.'.join(map(str, oldest))} or later is needed")
        return library
    raise MissingDependency(MODULES[target][0], target, _COMMANDS.get(target))


class _Log:
    """Keeps errors and the listing of layers, and prints nothing; stands before TensorRT's own ILogger among bases."""

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
        return "; ".join(" ".join(text.split()) for text in self.errors[-2:]) or "it gives no reason"


def quiet_logger(library: ModuleType) -> Any:
    """Return a logger for `library` with `errors`, `layers` and `words()`, what it said last of what went wrong."""
    kind: Any = type("Log", (_Log, library.ILogger), {})
    return kind((library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR))
