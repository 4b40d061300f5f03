"""One-off measurements behind the pages: `python -m studies.NAME.measure --help`, from a clone.

A study runs on one thread unless the environment says otherwise, so that what it times can be compared. This is set
before NumPy, torch and the tokenizer are imported, which read it once.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
