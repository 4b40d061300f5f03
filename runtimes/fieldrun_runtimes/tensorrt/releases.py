"""NVIDIA's packages and releases, for what runs on them and for the doctor, which imports none.

`MODULES` maps a target to the import names of its Python package, of which the first that is there is taken, and
`OLDEST` to the oldest version that will do.
"""

from __future__ import annotations

import re

__all__ = ["MODULES", "OLDEST", "parse_nv_tegra_release"]

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}

OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 1)}  # JetPack 6.1 and later have TensorRT 10.3


def parse_nv_tegra_release(text: str) -> str | None:
    """Return the version of Jetson Linux (L4T), such as "36.4.3", from the text of `/etc/nv_tegra_release`."""
    found = re.search(r"\bR(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else None
