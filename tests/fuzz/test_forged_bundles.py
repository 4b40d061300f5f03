"""Forged bundles are refused or answered: some of the thousands that `python -m studies.forge` tries by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fieldrun_runtimes.engines.native_engine import is_compiled
from studies.forge.__main__ import try_bundles

ENGINES = ("numpy", "onnxruntime", *(("native",) if is_compiled() else ()))


def test_forged_bundles_are_refused_or_answered(toy_bundle: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(toy_bundle, tmp_path / "source"))
    found = try_bundles(source, tmp_path, 0, 60, ENGINES)
    assert found.failures == []
    for counts in found.counts.values():
        assert counts.total() == 60
        assert counts["answered"] > 0
        assert counts["refused: BundleError"] > 20


def test_a_bundle_that_ends_the_process_is_noticed(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "__init__.py").write_text("")
    (tmp_path / "studies" / "forge").mkdir()
    (tmp_path / "studies" / "forge" / "__init__.py").write_text("")
    (tmp_path / "studies" / "forge" / "trial.py").write_text(
        "import json, os, signal, sys\n"
        "print(json.dumps({'number': int(sys.argv[3]), 'engine': 'numpy', 'changed': 'x'}), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    found = try_bundles(toy_bundle, tmp_path / "work", 5, 2, ("numpy",))
    assert [failure["number"] for failure in found.failures] == [5, 6]
    assert "-11" in found.failures[0]["outcome"]
