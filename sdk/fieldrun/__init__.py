"""Classify and embed text on small devices: load a bundle, teach it a task, export a checkpoint, prove the result.

    import fieldrun

    with fieldrun.load() as model:
        model.predict(["a gripping film"], "sst2")
        model.attach(fieldrun.fit_head(model, texts, labels, name="my-task"))

Every command of the command line is a function here. Importing this module is fast: engines, the exporter and the
training code are imported when a function that needs them is first used. `MissingDependency` says what to install.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from fieldrun_benchmarks.harness.bench import bench
    from fieldrun_benchmarks.report.render import report
    from fieldrun_exporters.encoder.importing import ImportReport, import_encoder
    from fieldrun_exporters.export import ExportReport, export
    from fieldrun_exporters.search.compress import CompressReport, compress
    from fieldrun_runtimes.answers import Answer, answer
    from fieldrun_runtimes.check import CheckReport, check
    from fieldrun_runtimes.fit import FitReport, fit
    from fieldrun_runtimes.install import InstallReport, install, rollback
    from fieldrun_runtimes.label import LabelReport, label
    from fieldrun_runtimes.model import FieldModel, load
    from fieldrun_runtimes.tensorrt.build import BuildReport, build
    from fieldrun_runtimes.tensorrt.cache import EngineCache
    from fieldrun_runtimes.verify import EngineReport, VerifyReport, verify

    from .distill import distill
    from .doctor import DoctorReport, doctor
    from .errors import FieldrunError
    from .evaluation.evaluate import Evaluation, evaluate
    from .formats.bundle import Bundle
    from .heads.fit import HeadTrainer, fit_head
    from .heads.head import Head
    from .heads.trained import Checkpoint

__all__ = [
    "Answer",
    "BuildReport",
    "Bundle",
    "CheckReport",
    "Checkpoint",
    "CompressReport",
    "DoctorReport",
    "EngineCache",
    "EngineReport",
    "Evaluation",
    "ExportReport",
    "FieldModel",
    "FieldrunError",
    "FitReport",
    "Head",
    "HeadTrainer",
    "ImportReport",
    "InstallReport",
    "LabelReport",
    "VerifyReport",
    "__version__",
    "answer",
    "bench",
    "build",
    "check",
    "compress",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "fit",
    "fit_head",
    "import_encoder",
    "install",
    "label",
    "load",
    "report",
    "rollback",
    "verify",
]

_HOMES = {
    "fieldrun.distill": "distill",
    "fieldrun.doctor": "DoctorReport doctor",
    "fieldrun.errors": "FieldrunError",
    "fieldrun.evaluation.evaluate": "Evaluation evaluate",
    "fieldrun.formats.bundle": "Bundle",
    "fieldrun.heads.fit": "HeadTrainer fit_head",
    "fieldrun.heads.head": "Head",
    "fieldrun.heads.trained": "Checkpoint",
    "fieldrun_benchmarks.harness.bench": "bench",
    "fieldrun_benchmarks.report.render": "report",
    "fieldrun_exporters.encoder.importing": "ImportReport import_encoder",
    "fieldrun_exporters.export": "ExportReport export",
    "fieldrun_exporters.search.compress": "CompressReport compress",
    "fieldrun_runtimes.answers": "Answer answer",
    "fieldrun_runtimes.check": "CheckReport check",
    "fieldrun_runtimes.fit": "FitReport fit",
    "fieldrun_runtimes.install": "InstallReport install rollback",
    "fieldrun_runtimes.label": "LabelReport label",
    "fieldrun_runtimes.model": "FieldModel load",
    "fieldrun_runtimes.tensorrt.build": "BuildReport build",
    "fieldrun_runtimes.tensorrt.cache": "EngineCache",
    "fieldrun_runtimes.verify": "EngineReport VerifyReport verify",
}
_GIVEN = {
    "bench": ("system", "fieldrun.doctor", "examine"),
    "compress": ("timer", "fieldrun_benchmarks.harness.timer", "text_to_labels_us"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fieldrun' has no attribute {name!r}")
    import importlib

    home = _HOME_OF[name]
    try:
        module = importlib.import_module(home)
        value = module if home == f"fieldrun.{name}" else getattr(module, name)  # the packages that can be called
        if name in _GIVEN:
            value = _given(value, *_GIVEN[name])
    except ModuleNotFoundError as error:
        from .errors import MissingDependency

        missing = MissingDependency.of(error)
        if missing is None:
            raise
        raise missing from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _given(function: Any, argument: str, home: str, name: str) -> Any:
    """Return `function` with an argument from a package that its own package must not import."""
    import importlib
    from functools import partial, update_wrapper

    value = getattr(importlib.import_module(home), name)
    return update_wrapper(partial(function, **{argument: value}), function)
