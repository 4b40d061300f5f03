"""Run meaning fields at the edge: load a bundle, teach it a task, export a checkpoint, verify what was exported.

    import fieldrun

    with fieldrun.load() as model:
        model.predict(["a gripping film"], "sst2")
        model.attach(fieldrun.fit_head(model, texts, labels, name="my-task"))

Importing this module loads neither an engine nor the exporter; each comes with its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from fieldrun_exporters.export import ExportReport, export
    from fieldrun_exporters.search.compress import SearchReport, search
    from fieldrun_runtimes.model import FieldModel, load
    from fieldrun_runtimes.tensorrt.build import BuildReport, build
    from fieldrun_runtimes.verify import VerifyReport, verify

    from .errors import FieldrunError
    from .heads.fit import HeadTrainer, fit_head
    from .heads.head import Head

__all__ = [
    "BuildReport",
    "ExportReport",
    "FieldModel",
    "FieldrunError",
    "Head",
    "HeadTrainer",
    "SearchReport",
    "VerifyReport",
    "__version__",
    "build",
    "export",
    "fit_head",
    "load",
    "search",
    "verify",
]

_HOMES = {
    "BuildReport": "fieldrun_runtimes.tensorrt.build",
    "ExportReport": "fieldrun_exporters.export",
    "FieldModel": "fieldrun_runtimes.model",
    "FieldrunError": "fieldrun.errors",
    "Head": "fieldrun.heads.head",
    "HeadTrainer": "fieldrun.heads.fit",
    "SearchReport": "fieldrun_exporters.search.compress",
    "VerifyReport": "fieldrun_runtimes.verify",
    "build": "fieldrun_runtimes.tensorrt.build",
    "export": "fieldrun_exporters.export",
    "fit_head": "fieldrun.heads.fit",
    "load": "fieldrun_runtimes.model",
    "search": "fieldrun_exporters.search.compress",
    "verify": "fieldrun_runtimes.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fieldrun' has no attribute {name!r}")
    import importlib

    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name == "onnx":
            from .errors import MissingDependency

            raise MissingDependency("onnx", "export") from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
