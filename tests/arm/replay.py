"""Runs on the emulated processor: replay a bundle's golden texts with one engine and print what differs, as JSON.

python replay.py BUNDLE ENGINE
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata

import numpy as np

import fieldrun

__all__ = ["replay"]


def replay(bundle: str, engine: str) -> dict[str, object]:
    """Return `verify`'s report, and of how many golden scores the label is the same."""
    (report,) = fieldrun.verify(bundle, engine=engine).engines
    with fieldrun.load(bundle, engine=engine) as model:
        golden = json.loads((model.path / "golden.json").read_text("utf-8"))
        texts = golden["texts"]
        pairs = list(zip(texts, texts[1:] + texts[:1], strict=True))
        equal = total = 0
        for task, expected in golden["scores"].items():
            found = model.predict_proba(texts if model.kind(task) == "single" else pairs, task)
            same = found.argmax(1) == np.array(expected).argmax(1)
            equal, total = equal + int(same.sum()), total + len(same)
        sha256 = model.manifest.to_dict()["sha256"]
    return {
        **report.to_dict(),
        "labels": total,
        "labels_equal": equal,
        "sha256": sha256,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "onnxruntime", "tokenizers")},
    }


if __name__ == "__main__":
    print(json.dumps(replay(*sys.argv[1:])))
