"""A command whose stdout or stderr is closed does its work, and writes to no file that is not meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", ["--help", "--version", "run --help", "tasks", "info --json"])
def test_a_full_disk_and_a_reader_that_left_are_no_traceback(arguments: str) -> None:
    for end, code in (("> /dev/full", 11), ("| true; exit ${PIPESTATUS[0]}", None)):
        line = f'"{sys.executable}" -m fieldrun {arguments} {end}'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert done.returncode == code or (code is None and done.returncode in (0, 1, 141))


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, toy_bundle: Path, tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m fieldrun run -b "{toy_bundle}" --task mood "a good film" {closed}'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    place = tmp_path / "fitted"
    line = f'"{sys.executable}" -m fieldrun install "{toy_bundle}" "{place}" {closed}'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitted"]
