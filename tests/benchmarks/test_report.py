"""Reports of a record of planted subjects: what they say, that they hold no request, what --diff calls a regression."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fieldrun.cli import main
from fieldrun.errors import DatasetError, FieldrunError, SchemaTooNew
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness import bench
from fieldrun_benchmarks.harness.record import append_record, conditions, new_record
from fieldrun_benchmarks.harness.subject import parse_subject
from fieldrun_benchmarks.report import render
from fieldrun_benchmarks.report.diff import diff, newcombe
from fieldrun_benchmarks.report.facts import not_measured
from fieldrun_benchmarks.report.metrics import machine_of, metrics
from fieldrun_benchmarks.report.render import page, read_records, to_csv, to_json, to_markdown
from fieldrun_benchmarks.report.sections import claim, sections
from tests.benchmarks.test_bench import PLANTED, SHORT, HereProcess, _workload

ABOUT = ("schema", "kind", "command", "conditions")
needs_plots = pytest.mark.skipif(
    not all(__import__("importlib.util").util.find_spec(name) for name in ("jinja2", "matplotlib")),
    reason="needs the extra bench: pip install 'fieldrun[bench]'",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    rows = path / "rows.tsv"
    rows.write_text("text\tlabel\n" + "a\tshort\n" * 150 + "b\tlong\n" * 50, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "WorkerProcess", HereProcess)
        spec = parse_subject(f"{PLANTED}:Counting")
        specs = [replace(spec, name=name) for name in ("first", "<b>second</b>")]
        values = bench.measure(specs, replace(_workload(), sources=()), SHORT, {"length": read_tsv(rows)})
    append_record(path, new_record("bench", "fieldrun bench first --quick", values))
    return path


@pytest.fixture
def path(folder: Path) -> Path:
    (found,) = folder.glob("bench-*.json")
    return found


@pytest.fixture
def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(dict(read_records([path])[0]))
    return found


def _steady(record: dict[str, Any], p50_us: float, seed: int = 0) -> dict[str, Any]:
    """The record with a first subject of a known latency that varies by 1 % from window to window."""
    found = copy.deepcopy(record)
    draw = np.random.default_rng(seed)
    windows = [(p50_us * draw.normal(1, 0.01, 10)).tolist() for _ in range(5)]
    found["subjects"]["first"]["single_stream"] |= {"p50_us": p50_us, "windows_us": windows}
    return found


def _values(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ABOUT}


def test_records_are_only_added(folder: Path, record: dict[str, Any], tmp_path: Path) -> None:
    paths = [append_record(tmp_path, record) for _ in range(3)]
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 3


def test_a_record_of_a_newer_schema_stops_the_report(path: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.json"
    write_json(newer, read_json(path) | {"schema": 99})
    with pytest.raises(SchemaTooNew, match="pip install --upgrade fieldrun"):
        read_records([path, newer])
    write_json(newer, {"schema": 1, "kind": "bench", "subjects": {}})
    with pytest.raises(FieldrunError, match="is incomplete"):
        read_records([newer])


def test_the_claim_has_latency_machine_and_accuracy(record: dict[str, Any]) -> None:
    text = claim(record)
    p50 = record["subjects"]["first"]["single_stream"]["p50_us"]
    assert text.startswith("first")
    assert f"{p50:.1f} us" in text
    assert record["conditions"]["processor"] in text
    assert "75.0 % right on length (n = 200)" in text


def test_the_claim_carries_its_warnings(record: dict[str, Any]) -> None:
    record["warnings"] = []
    assert claim(record).endswith("(n = 200).")
    record["warnings"] = [{"about": "machine", "text": "it was throttled 2 times"}]
    assert claim(record).endswith("(n = 200). Warning: machine: it was throttled 2 times.")
    record["warnings"] *= 3
    assert claim(record).endswith("throttled 2 times (and 2 more).")


def test_a_percentile_is_one_number_everywhere(record: dict[str, Any]) -> None:
    record["subjects"]["first"]["single_stream"]["percentiles"]["p99"] = {"value_us": 263.0, "upper_us": 6712.0}
    assert "99 % within 263 us" in claim(record)
    tables = {table.head: table.rows for section in sections(record) for table in section.tables}
    glance = next(dict(zip(head, rows[0], strict=True)) for head, rows in tables.items() if "99 % within" in head)
    latency = next(dict(zip(head, rows[0], strict=True)) for head, rows in tables.items() if "queries" in head)
    assert (glance["99 % within"], latency["99 %"], latency["99 %, upper bound"]) == ("263 us", "263 us", "6,712 us")
    (metric,) = (one for one in metrics(record) if (one.subject, one.metric) == ("first", "single_stream_p99"))
    assert (metric.value, metric.high) == (263.0, 6712.0)


def test_missing_values_are_told_and_never_zero(record: dict[str, Any]) -> None:
    assert record["sensors"]["energy_j"].get("unavailable") or record["sensors"]["energy_j"]["joules"] > 0
    record["sensors"]["energy_j"] = {"unavailable": "/sys/class/powercap/x: only root may read it"}
    text = to_markdown([record])
    assert "Not measured: /sys/class/powercap/x: only root may read it." in text
    found = dict(not_measured(record["subjects"]))
    assert any("loadgen" in where for where in found)
    row = next(row for row in metrics(record) if row.metric == "cold_start")
    assert row.value is None


def test_the_spellings_say_the_same(record: dict[str, Any]) -> None:
    found = {section.title for section in sections(record)}
    assert {"At a glance", "Latency", "Energy", "Accuracy", "Not measured", "Warnings", "Repeat it"} <= found
    text = to_markdown([record])
    assert all(f"### {title}" in text for title in found)
    rows = list(csv.DictReader(io.StringIO(to_csv([record]))))
    p50 = next(r for r in rows if (r["subject"], r["metric"]) == ("first", "single_stream_p50"))
    assert float(p50["value"]) == pytest.approx(record["subjects"]["first"]["single_stream"]["p50_us"], abs=0.002)
    assert json.loads(to_json([record]))["records"] == [record]


def test_a_failed_subject_is_in_every_section_it_can_be(record: dict[str, Any]) -> None:
    record["subjects"]["<b>second</b>"] = {"kind": "python", "threads": 1, "failed": "it hung"}
    record["ratios"] = [{"of": "<b>second</b>", "to": "first", "pairs": 0, "unavailable": "one of the two failed"}]
    text = to_markdown([record])
    assert "one of the two failed" in text
    assert "| <b>second</b> | failed |" in text


class _Requests(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [tag] if tag in ("script", "iframe", "object", "embed") else []
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            value = values.get(name)
            if value and not value.startswith(("#", "data:,")):
                self.found.append(value)
        if identity := values.get("id"):
            self.ids.append(identity)
        self.images += tag == "svg" and values.get("role") == "img"


@needs_plots
def test_the_page_needs_nothing_outside_itself(record: dict[str, Any]) -> None:
    html = page([record, record])
    parser = _Requests()
    parser.feed(html)
    assert parser.found == []
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.images >= 12
    assert "<script>alert" not in html
    assert "<b>second</b>" not in html
    assert "@import" not in html
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert used <= set(parser.ids)
    assert "#0102" not in html  # every stand-in colour has become a variable of the page


@needs_plots
def test_the_same_record_gives_the_same_page(record: dict[str, Any]) -> None:
    assert page([record]) == page([record])


@needs_plots
def test_machines_are_not_mixed_in_silence(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["conditions"]["processor"] = "Cortex-A76"
    for text in (page([record, other]), to_markdown([record, other])):
        assert "2 machines" in text
        assert "do not compare their times" in text
    assert "do not compare" not in to_markdown([record, record])


def test_boards_of_the_same_cores_are_two_machines(record: dict[str, Any]) -> None:
    boards = []
    for device in ("NVIDIA Jetson Orin Nano Developer Kit", "NVIDIA Jetson AGX Orin Developer Kit"):
        board = copy.deepcopy(record) | {"system": {"device": device}}
        board["conditions"] |= {"processor": "ARM implementer 0x41 part 0xd42", "architecture": "aarch64"}
        boards.append(board)
    assert machine_of(boards[0]).startswith("NVIDIA Jetson Orin Nano Developer Kit: ARM implementer 0x41 part 0xd42 (")
    assert "2 machines" in to_markdown(boards)
    assert "times are not compared" in diff(*boards).notes[0]
    pi = copy.deepcopy(record) | {"system": {"device": "Raspberry Pi 5 Model B Rev 1.0"}}
    pi["conditions"]["processor"] = "Raspberry Pi 5 Model B Rev 1.0, ARM implementer 0x41 part 0xd0b"
    assert machine_of(pi).startswith(f"{pi['conditions']['processor']} (")


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast(repository: Path) -> None:
    """WCAG 2: 4.5 for text, 3 for the lines of figures, in the light and in the dark scheme."""
    template = repository / "benchmarks/fieldrun_benchmarks/report/page.html.j2"
    schemes = re.findall(r":root \{(.*?)\}", template.read_text("utf-8"), re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for name in colours:
            least = 4.5 if name in ("ink", "soft", "warn", "line0") else 3.0 if name.startswith("line") else 0
            for ground in ("warnpaper",) if name == "warn" else ("paper", "panel"):
                high, low = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


def test_a_planted_regression_is_caught(record: dict[str, Any]) -> None:
    old, slower = _steady(record, 100.0, 1), _steady(record, 120.0, 2)
    found = diff(old, slower)
    change = next(c for c in found.regressions if c.metric == "single_stream_p50")
    assert change.subject == "first"
    assert change.ci95 is not None
    assert 1.17 < change.ci95[0] < 1.2 < change.ci95[1] < 1.23
    assert "| regression | first | single_stream_p50 |" in found.to_markdown()
    better = next(c for c in diff(slower, old).changes if c.metric == "single_stream_p50")
    assert better.verdict == "improvement"
    same = diff(old, _steady(record, 100.0, 3))
    assert not [c for c in same.regressions if c.subject == "first"]


def test_a_subject_that_takes_a_fifth_longer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WorkerProcess", HereProcess)
    settings = replace(SHORT, repeats=3, seconds=0.05, scenarios=())
    old, new = (
        bench.measure([replace(parse_subject(f"{PLANTED}:{name}"), name="it")], _workload(), settings, {})
        for name in ("Steady", "Slowed")
    )
    found = diff(*({"conditions": conditions(), **values} for values in (old, new)))
    assert "single_stream_p50" in {change.metric for change in found.regressions}


def test_accuracy_and_size_are_compared_too(record: dict[str, Any]) -> None:
    new = copy.deepcopy(record)
    entry = new["subjects"]["first"]["accuracy"]["length"]
    entry["accuracy"] = 0.5
    new["subjects"]["first"]["about"]["artifact"]["bytes"] = 1200
    found = {c.metric: c for c in diff(record, new).regressions if c.subject == "first"}
    low, high = found["accuracy_length"].ci95 or (0, 0)
    assert low < -0.25 < high < 0
    assert found["artifact"].change == 1.2
    text = diff(record, new).to_markdown()
    assert "| regression | first | accuracy_length | 75.0 % | 50.0 % | -25.0 points | -3" in text
    assert "| regression | first | artifact | 1.0 kB | 1.2 kB | 1.200 times |  |" in text


def test_a_new_failure_is_a_regression(record: dict[str, Any]) -> None:
    failed, early = copy.deepcopy(record), copy.deepcopy(record)
    failed["subjects"]["first"] = {"kind": "python", "threads": 1, "failed": "it hung"}
    early["subjects"]["first"]["ended_early"] = "it crashed"
    for worse in (failed, early):
        (change,) = (c for c in diff(record, worse).regressions if c.metric == "completed")
        assert (change.subject, change.old, change.new) == ("first", 1, 0)
        (change,) = (c for c in diff(worse, record).changes if c.metric == "completed")
        assert change.verdict == "improvement"
        assert "completed" not in {c.metric for c in diff(worse, worse).changes}
    assert "first failed in the new record: it hung" in diff(record, failed).notes


def test_accuracies_of_other_rows_are_not_compared(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["subjects"]["first"]["accuracy"]["length"] |= {"accuracy": 0.1, "sha256": "0" * 64}
    found = diff(record, other)
    assert [c.subject for c in found.changes if c.metric == "accuracy_length"] == ["<b>second</b>"]
    assert "first, length: other labelled rows, so accuracies are not compared" in found.notes


def test_throughput_and_cold_start_are_compared(record: dict[str, Any]) -> None:
    old, new = copy.deepcopy(record), copy.deepcopy(record)
    row = {"batch": 32, "threads": 1, "texts_per_s": 1000.0, "min": 980.0, "max": 1020.0}
    old["subjects"]["first"]["offline"] = [row, row | {"batch": 8}, row | {"batch": 1}]
    slower = {"texts_per_s": 800.0, "min": 780.0, "max": 870.0}
    new["subjects"]["first"]["offline"] = [row | slower, row | slower | {"batch": 8, "max": 890.0}]
    for one, seconds in ((old, 0.20), (new, 0.23)):
        one["subjects"]["first"]["cold_start"] = {"wall_s": seconds, "peak_rss_mib": 40.0}
    found = {c.metric: c for c in diff(old, new).changes if c.subject == "first"}
    assert found["offline_batch32_callers1"].verdict == "regression"
    assert found["offline_batch32_callers1"].change == 0.8
    assert found["offline_batch8_callers1"].verdict == "no change shown"  # the turns are not clear of it
    assert "offline_batch1_callers1" not in found
    assert found["cold_start"].verdict == "regression"
    back = {c.metric: c.verdict for c in diff(new, old).changes if c.subject == "first"}
    assert back["offline_batch32_callers1"] == back["cold_start"] == "improvement"


def test_records_of_peers_are_compared_by_workload(record: dict[str, Any], tmp_path: Path) -> None:
    old = {key: record[key] for key in ABOUT} | {"kind": "peers", "workloads": {}}
    new = copy.deepcopy(old)
    for name, p50_us in (("a/dev", 100.0), ("b/test", 50.0)):
        old["workloads"][name] = _values(_steady(record, p50_us))
    new["workloads"] = {"b/test": _values(_steady(record, 70.0)), "c/dev": old["workloads"]["a/dev"]}
    paths = [tmp_path / name for name in ("old.json", "new.json", "bench.json")]
    for path, value in zip(paths, (old, new, record), strict=True):
        write_json(path, value)
    found = json.loads(_call("report", "--diff", *paths[:2], "--json", code=1).stdout)
    subjects = {c["subject"] for c in found["changes"]}
    assert subjects == {"first on b/test", "<b>second</b> on b/test"}
    assert found["notes"][0] == "in one record only: a/dev, c/dev"
    assert "no workload in common" in _call("report", "--diff", paths[0], paths[2], code=2).stderr


def test_newcombes_own_example() -> None:
    """56 of 70 against 48 of 80, method 10 of the paper: 0.0524 to 0.3339."""
    low, high = newcombe({"accuracy": 56 / 70, "n": 70}, {"accuracy": 48 / 80, "n": 80})
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_other_machines_have_no_regressions_of_time(record: dict[str, Any]) -> None:
    other = _steady(record, 900.0)
    other["conditions"]["processor"] = "Cortex-A76"
    found = diff(_steady(record, 100.0), other)
    assert "times are not compared" in found.notes[0]
    assert not [c for c in found.changes if c.metric.startswith("single_stream")]
    with pytest.raises(FieldrunError, match="no subject is in both"):
        diff(record, record | {"subjects": {"third": {}}})


@needs_plots
def test_the_functions_behind_the_commands(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _values(record)
    seen: list[Any] = []

    def planted(*arguments: Any, **_: Any) -> dict[str, Any]:
        seen.extend(arguments)
        return dict(values)

    monkeypatch.setattr(bench, "measure", planted)
    rows = tmp_path / "rows.tsv"
    rows.write_text("text\tlabel\na\tshort\nb\tlong\n", "utf-8")
    found = bench.bench(["null"], workload=[rows], data={"length": rows}, repeats=3, loadgen=False, report=tmp_path)
    (spec,), sent, settings, labelled = seen
    assert (spec.kind, sorted(sent.texts), settings.repeats, len(labelled["length"])) == ("null", ["a", "b"], 3, 2)
    assert "loadgen" not in settings.scenarios
    assert found.path is not None
    assert found.page == tmp_path / "report.html"
    assert found.failures == {}
    assert found.claim.startswith("first")
    assert {metric.subject for metric in found.metrics} == {"first", "<b>second</b>"}
    assert found.to_dict()["command"] == (
        f"fieldrun bench null --workload={rows} --data=length={rows} --repeats=3 --no-loadgen --report={tmp_path}"
    )

    made = render.report([found.path], tmp_path / "a.md")
    assert (made.records, made.diff, made.path) == (1, None, tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text("utf-8") == made.text
    compared = render.report([found.path, found.path], diff=True)
    assert compared.diff is not None
    assert compared.diff.regressions == ()
    assert compared.to_dict()["regressions"] == 0


def _call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def test_the_command_compares(record: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_json(old, _steady(record, 100.0, 1))
    write_json(new, _steady(record, 120.0, 2))
    result = _call("report", "--diff", old, new, "--json", code=1)
    assert json.loads(result.stdout)["regressions"] >= 1
    assert "worse than before: first single_stream_p50" in result.stderr
    assert "no change shown" in _call("report", "--diff", old, old).stdout
    assert "OLD NEW, not 1" in _call("report", "--diff", old, code=2).stderr


def test_the_command_writes_what_the_ending_says(path: Path, tmp_path: Path) -> None:
    _call("report", path, "-o", tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text("utf-8").startswith("# fieldrun bench")
    assert "1 record" in _call("report", path, "-o", tmp_path / "a.csv").stdout
    assert json.loads(_call("report", path, "-o", tmp_path / "a.json", "--json").stdout)["records"] == 1
    assert "--force" in _call("report", path, "-o", tmp_path / "a.csv", code=2).stderr
    assert "the ending must be one of" in _call("report", path, "-o", tmp_path / "a.pdf", code=2).stderr
    assert "give -o" in _call("report", path, code=2).stderr


def test_rows_that_a_bench_cannot_use_are_refused(tmp_path: Path) -> None:
    single, pairs = tmp_path / "mood.tsv", tmp_path / "same.tsv"
    single.write_text("text\tlabel\na film\tgood\nrain\tbad\n", "utf-8")
    pairs.write_text("text_a\ttext_b\tlabel\na\tb\tyes\nc\td\tno\n", "utf-8")
    named_twice = _call("bench", "null", "--data", f"mood={single}", "--data", f"mood={pairs}", code=2)
    assert "names the task 'mood' twice" in named_twice.stderr
    assert "write TASK=FILE" in _call("bench", "null", "--data", single, code=2).stderr
    refused = _call("bench", "null", "--data", f"same={pairs}", code=DatasetError.exit_code)
    assert f"{pairs} holds pairs" in refused.stderr


@needs_plots
def test_bench_keeps_its_record_beside_the_report(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _values(record)
    monkeypatch.setattr(bench, "measure", lambda *_, **__: dict(values))
    out = tmp_path / "out"
    result = _call("bench", "null", "--quick", "--report", out)
    (kept,) = out.glob("bench-*.json")
    assert str(out / "report.html") in result.stdout
    assert read_json(kept)["system"]["cpu"]
    assert "<!doctype html>" in (out / "report.html").read_text("utf-8")
    assert json.loads(_call("bench", "null", "--json").stdout)["kind"] == "bench"
    values["subjects"] = {"null": {"kind": "null", "threads": 1, "failed": "null: it hung"}}
    values["ratios"] = []
    assert "error: null: null: it hung" in _call("bench", "null", "--report", out, code=1).stderr
    assert len(list(out.glob("bench-*.json"))) == 2
    assert "same name" in _call("bench", "null", "null", code=2).stderr
    assert "TASK=FILE" in _call("bench", "null", "--data", "x", code=2).stderr
    (tmp_path / "empty.txt").touch()
    assert "has no texts" in _call("bench", "null", "--workload", tmp_path / "empty.txt", code=4).stderr


@needs_plots
def test_a_subject_that_fails_alone_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WorkerProcess", HereProcess)
    out = tmp_path / "out"
    result = _call("bench", f"{PLANTED}:Refusing", "--quick", "--no-loadgen", "--report", out, code=1)
    assert "error: tests.benchmarks.planted:Refusing: this machine lacks what it needs" in result.stderr
    (kept,) = out.glob("bench-*.json")
    (subject,) = read_json(kept)["subjects"].values()
    assert subject["failed"] == "this machine lacks what it needs"
    assert "it failed: this machine lacks what it needs" in (out / "report.html").read_text("utf-8")


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@needs_plots
@pytest.mark.slow
@pytest.mark.skipif(_browser() is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_offline(record: dict[str, Any], tmp_path: Path, width: int) -> None:
    """It renders, nothing overflows, and neither an error nor a blocked request is on the console."""
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth, view: innerWidth, "
        "figures: [...document.querySelectorAll('figure svg')]"
        ".filter(s => s.getBoundingClientRect().height > 80).length, "
        "resources: performance.getEntriesByType('resource').map(r => r.name) }); })</script>"
    )
    html = page([record])
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    watched = html.replace(policy, f"{policy}; script-src 'unsafe-inline'").replace("</head>", f"{probe}</head>")
    file = tmp_path / "report.html"
    file.write_text(watched, "utf-8")
    command = [str(_browser()), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stdout[:300]
    seen = json.loads(title.group(1))
    assert seen["wide"] <= seen["view"]
    assert seen["figures"] == html.count("<figure>")
    assert [name for name in seen["resources"] if not name.startswith("data:")] == []
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
