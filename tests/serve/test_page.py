"""The page on the service: its answers are those of the service, its limits the defaults, systemd reads its units."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from fieldrun.serve import Limits, app
from tests.serve.conftest import ask

ANSWER = re.compile(r"<!-- answer: (\S+) (.*?) -->\n```json\n(.*?)```", re.DOTALL)
UNIT = re.compile(r"<!-- unit: (\S+) -->\n```ini\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "serve.md").read_text("utf-8")


def test_answers_are_as_shown(page: str) -> None:
    application = app("reference")
    shown = ANSWER.findall(page)
    assert len(shown) == 3
    for endpoint, body, answer in shown:
        found = ask(application, endpoint, json.loads(body)).json
        expected = json.loads(answer)
        for value in (found, expected):  # another engine may differ in the last bit
            for row in value.get("results", ()):
                for label in row.get("labels", ()):
                    label["score"] = round(label["score"], 4)
        assert found == expected


def test_limits_are_as_shown(page: str) -> None:
    rows = dict(re.findall(r"^\| [^|]+ \| `(--[\w-]+)` \| ([\d,]+) \|", page, re.MULTILINE))
    defaults = Limits()
    assert [int(value.replace(",", "")) for value in rows.values()] == [
        getattr(defaults, field.name) for field in fields(defaults)
    ]


def test_every_metric_is_named(page: str) -> None:
    metrics = ask(app("reference"), "/metrics").body.decode()
    assert set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE)) == set(re.findall(r"`(fieldrun_\w+)`", page))


def test_units(page: str, tmp_path: Path) -> None:
    units = dict(UNIT.findall(page))
    assert set(units) == {"fieldrun-http.socket", "fieldrun-http.service"}
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for name, text in units.items():
        # systemd wants to see a program, and this machine has none in /opt
        (tmp_path / name).write_text(text.replace("/opt/fieldrun/bin/fieldrun", str(shutil.which("cat"))), "utf-8")
    command = ["systemd-analyze", "verify", *(f"./{name}" for name in units)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
