"""The Python package of each target, imported when it is first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from fieldrun.errors import EngineError, MissingDependency, UnknownName

__all__ = ["TARGETS", "load_library"]

TARGETS = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Target -> the import names of its package, the first that is there is taken."""

_COMMANDS = {"tensorrt": "apt-get install python3-libnvinfer on a Jetson, pip install tensorrt elsewhere"}
"""What brings a package that is not in the extra of its target: TensorRT's comes from NVIDIA."""

_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 1)}


def load_library(target: str) -> ModuleType:
    """Import the package of `target`.

    Raises:
        UnknownName: no such target.
        MissingDependency: it is not installed.
        EngineError: it is installed but a library of it is missing, or it is too old.
    """
    if target not in TARGETS:
        raise UnknownName("target", target, list(TARGETS))
    for name in TARGETS[target]:
        try:
            library = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise EngineError(f"{name} cannot be imported: {error}; install {target} again") from error
            continue
        except (ImportError, OSError) as error:  # the bindings are there, their shared libraries are not
            raise EngineError(f"{name} cannot be imported: {error}; install {target}'s libraries") from error
        version = str(library.__version__)
        oldest = _OLDEST[target]
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            raise EngineError(f"{target} {version} is too old: {'.'.join(map(str, oldest))} or later is needed")
        return library
    raise MissingDependency(TARGETS[target][0], target, _COMMANDS.get(target))
