"""Compile the native engine when fieldrun is installed; without a C compiler the other engines do its work.

`CC` names another compiler. For a wheel of another machine, `_PYTHON_HOST_PLATFORM` says which, as for any package:
`CC=aarch64-linux-gnu-gcc _PYTHON_HOST_PLATFORM=linux-aarch64 pip wheel --no-deps fieldrun-0.1.0.tar.gz`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "runtimes/fieldrun_runtimes/native/native.c"
LIBRARY = "runtimes/fieldrun_runtimes/native/native.so.1"
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-Wno-psabi")


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled library to wheels and to editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform; say why where it cannot be."""
        del version
        library = Path(self.root, LIBRARY)
        compiler = shlex.split(os.environ.get("CC", ""))
        if not compiler:
            compiler = [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
        if not compiler or shutil.which(compiler[0]) is None:
            library.unlink(missing_ok=True)  # an old one must not be shipped
            self.app.display_warning("no C compiler: fieldrun is installed without its native engine")
            return
        partial = library.with_name("native.partial")
        command = [*compiler, *FLAGS, "-o", str(partial), str(Path(self.root, SOURCE)), "-lm"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            partial.unlink(missing_ok=True)
            library.unlink(missing_ok=True)
            self.app.display_warning(f"fieldrun is installed without its native engine:\n{ended.stderr[-2000:]}")
            return
        partial.replace(library)
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
