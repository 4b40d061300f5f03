"""What PyInstaller cannot see: the modules that fieldrun imports by name, the shipped bundle and the compiled engine.

PyInstaller also sees what only a type checker imports. So training, export and benchmarks are left out, with all that
they would bring; an app that uses them imports them by their own names, such as `fieldrun_exporters.export`.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

_OTHERS = ("fieldrun.distill", "fieldrun.ray", "fieldrun.sklearn", "fieldrun_benchmarks", "fieldrun_exporters")

excludedimports = list(_OTHERS)
hiddenimports = collect_submodules("fieldrun", filter=lambda name: not name.startswith(_OTHERS))
hiddenimports += collect_submodules("fieldrun_runtimes")
datas = collect_data_files("fieldrun") + collect_data_files("fieldrun_runtimes", excludes=["**/*.c"])
for package in ("numpy", "onnx", "onnxruntime", "tokenizers"):  # their versions are written into every export
    with contextlib.suppress(PackageNotFoundError):
        datas += copy_metadata(package)
