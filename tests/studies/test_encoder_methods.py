"""The study of the published methods: every part on a tiny BERT, resumable, honest about rows, shown as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fieldrun.errors import FieldrunError, UnknownName, UsageError
from fieldrun.formats.storage import read_json, write_json
from fieldrun.formats.tensors import Array
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import Head
from fieldrun_benchmarks.harness.record import read_record
from fieldrun_exporters.encoder.importing import load_encoder
from studies.columns import markdown
from studies.encoder_methods import measure as encoder_methods
from studies.encoder_methods import tasks as encoder_tasks
from studies.encoder_methods.measure import PARTS, groups, late
from studies.encoder_methods.tables import BLOCKS
from studies.encoder_methods.tasks import Limits, Tokens, judge, read_suite, recovered, summary
from tests.tiny_bert import CONFIG, bert_weights, write_bert
from tests.toy import WORDS


def _write(path: Path, header: str, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")


def _text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for task, report, labels in (("trec", "test.tsv", 3), ("sst2", "dev.tsv", 2), ("banking77", "test.tsv", 4)):
        for file, n in (("train.tsv", 170), (report, 70)):
            rows = [f"{_text(rng)}\tlabel{i % labels}" for i in range(n)]
            _write(folder / task / file, "text\tlabel", rows)
    for file, n in (("train.tsv", 60), ("dev.tsv", 80)):
        rows = [f"{_text(rng)}\t{_text(rng)}\t{rng.integers(0, 6)}.000" for _ in range(n)]
        _write(folder / "stsb" / file, "text_a\ttext_b\tlabel", rows)
    seen = (folder / "trec" / "test.tsv").read_text("utf-8").split("\n")[1]
    with (folder / "trec" / "train.tsv").open("a", encoding="utf-8") as train:
        train.write(seen + "\n")  # a report text that is in the train file as well
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The arguments of a quick run, and the folder of its records; treat as read-only."""
    folder = tmp_path_factory.mktemp("run")
    bert = write_bert(folder / "tiny", num_hidden_layers=3, weights=_three_layers())
    arguments = [f"Tiny={bert}", "--data", str(data), "-o", str(folder / "records"), "--work", str(folder / "work")]
    arguments += ["--threads", "1", "--quick"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_tasks, "fit_fields", _nearest_mean)  # its cross-validation is what takes long
        result = CliRunner().invoke(encoder_methods.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return arguments, folder / "records"


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the average ranks, by counting."""
    x, y = (np.array([(np.array(v) < one).sum() + (np.array(v) == one).sum() / 2 for one in v]) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def _nearest_mean(x: Array, labels: Sequence[str]) -> Head:
    names = sorted(set(labels))
    means = np.stack([x[[label == name for label in labels]].mean(0) for name in names])
    weight, bias = means.T.astype(np.float32), (-0.5 * np.square(means).sum(1)).astype(np.float32)
    return Head(name="probe", kind="single", labels=tuple(names), weight=weight, bias=bias, about={"strength": 1.0})


def _three_layers() -> dict[str, Array]:
    return bert_weights({**CONFIG, "num_hidden_layers": 3})


def test_every_part_has_a_record_with_intervals(done: tuple[list[str], Path]) -> None:
    for part in PARTS:
        record = read_record(done[1] / f"encoder-{part}-Tiny.json", f"encoder-{part}")
        assert record["quick"] is True
        assert record["encoder"]["layers"] == 3
        assert record["dense"]["stsb"]["difference"] == 0
        assert record["dense"]["mean"]["difference"] == 0
        assert record["suite"]["stsb_pairs"] == 60
        for entry in record["variants"].values():
            if "refused" in entry:
                continue
            low, high = entry["stsb"]["ci95"]
            assert low <= entry["stsb"]["spearman"] <= high
            assert entry["field"]["mean_cosine"] < 1
            if part != "rank":
                assert {task["n"] for task in entry["tasks"].values()} == {60}


def test_low_rank_is_counted_and_fair(done: tuple[list[str], Path]) -> None:
    record = read_record(done[1] / "encoder-lowrank-Tiny.json", "encoder-lowrank")
    counts = {entry["method"]: entry["facts"]["parameters"] for entry in record["variants"].values()}
    for method, count in counts.items():
        assert count["before"] == record["encoder"]["block_parameters"]
        assert count["after"] < count["before"]
        assert count["after"] >= counts["a3"]["after"], method
    mixed = read_record(done[1] / "encoder-mixt-Tiny.json", "encoder-mixt")["variants"]
    shares = {name: entry["facts"]["parameters"]["share"] for name, entry in mixed.items() if "facts" in entry}
    assert shares["dropped"] == pytest.approx(2 / 3, abs=1e-4)
    assert 0.8 < shares["mixt 2"] < 0.86  # one block of three, half of its weights


def test_a_second_run_measures_nothing_again(
    done: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, records = done
    monkeypatch.setattr(encoder_methods, "judge", lambda *_, **__: pytest.fail("measured again"))
    again = [str(tmp_path) if a == str(records) else a for a in arguments]
    assert CliRunner().invoke(encoder_methods.main, again, catch_exceptions=False).exit_code == 0
    for part in PARTS:
        first, second = (read_json(folder / f"encoder-{part}-Tiny.json") for folder in (records, tmp_path))
        assert first["variants"] == second["variants"]


def test_the_tables_show_the_records(done: tuple[list[str], Path], tmp_path: Path) -> None:
    for part in PARTS:
        name = f"encoder-{part}-Tiny.json"
        write_json(tmp_path / name, read_json(done[1] / name) | {"quick": False})
    shown = {name: markdown(block(tmp_path)) for name, block in BLOCKS.items()}
    record = read_json(tmp_path / "encoder-lowrank-Tiny.json")
    entry = record["variants"]["a3, 20%"]
    line = next(line for line in shown["encoder-lowrank"].split("\n") if "A3, exact biases, 20%" in line)
    assert f"{entry['stsb']['spearman']:.4f}" in line
    assert f"{100 * entry['facts']['parameters']['share']:.1f}" in line
    for text in shown.values():
        rows = [line.count("|") for line in text.split("\n") if line.startswith("|")]
        assert rows
        assert "Tiny" in text
    assert shown["encoder-claims"].count("\n") == 7


def test_a_quick_record_is_not_shown_and_a_missing_one_says_how_to_measure(
    done: tuple[list[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(FieldrunError, match="--quick"):
        BLOCKS["encoder-rank"](done[1])
    assert "--parts mixt" in markdown(BLOCKS["encoder-mixt"](tmp_path))
    assert "Not measured yet" in markdown(BLOCKS["encoder-claims"](tmp_path))


def test_no_report_text_is_calibrated_or_tuned_on(data: Path) -> None:
    suite = read_suite(data, Limits(train=100, report=40, pairs=30, calibration=200, tuning=400))
    reported = set()
    for file in ("trec/test", "sst2/dev", "banking77/test", "stsb/dev"):
        for line in (data / f"{file}.tsv").read_text("utf-8").splitlines()[1:]:
            reported |= set(line.split("\t")[:-1])
    for texts in (suite.calibration, suite.tuning):
        assert len(set(texts)) == len(texts) > 50
        assert not reported & set(texts)
    assert suite.paired <= 60
    assert len(suite.probes["trec"].train) == 100
    assert read_suite(data, suite.limits).digest() == suite.digest()
    assert read_suite(data, Limits(train=99)).digest() != suite.digest()


def test_a_summary_is_that_of_the_rows(data: Path) -> None:
    suite = read_suite(data, Limits(train=100, report=40, pairs=60, calibration=20, tuning=20))
    rng = np.random.default_rng(0)
    grades = np.array(suite.grades)
    noisy = [grades + noise * rng.standard_normal(60) for noise in (0.5, 3.0, 1.5)]
    made: list[dict[str, Any]] = [
        {"cosines": c.tolist(), "field": {"mean_cosine": 1 - k / 10}} for k, c in enumerate(noisy)
    ]
    base, bad, tuned = made
    found = summary(bad, base, suite)["stsb"]
    assert found["spearman"] == pytest.approx(_spearman(bad["cosines"], suite.grades), abs=1e-5)
    low, high = found["difference_ci95"]
    assert low <= found["difference"] <= high < 0
    back = recovered(tuned, bad, base, suite)
    values = [_spearman(each["cosines"], suite.grades) for each in (tuned, bad, base)]
    assert back["stsb"]["share"] == pytest.approx((values[0] - values[1]) / (values[2] - values[1]), abs=1e-3)
    assert back["field"]["share"] == pytest.approx(-1.0)
    none = recovered(tuned, bad, bad, suite)  # no gap
    assert none["stsb"]["gap"] == 0
    assert none["stsb"]["share"] is None
    broken = summary({"cosines": [1.0] * 60, "field": {"mean_cosine": 0.0}}, base, suite)["stsb"]
    assert broken["spearman"] == 0  # one field for all texts tells none apart


def test_a_probe_is_fitted_on_the_train_rows_alone(data: Path, tmp_path: Path) -> None:
    encoder = load_encoder(write_bert(tmp_path / "bert"))
    suite = read_suite(data, Limits(train=40, report=30, pairs=10, calibration=8, tuning=8))
    found, fields = judge(encoder, Tokens(suite, encoder))
    probe = suite.probes["sst2"]
    head = fit_fields(fields[list(probe.train)], probe.train_labels)
    logits = fields[list(probe.report)] @ head.weight + head.bias
    hits = [head.labels[i] == label for i, label in zip(logits.argmax(1), probe.report_labels, strict=True)]
    assert found["tasks"]["sst2"]["accuracy"] == pytest.approx(np.mean(hits))
    assert np.linalg.norm(fields, axis=1) == pytest.approx(1, abs=1e-5)
    left, right = (fields[list(side)] for side in zip(*suite.pairs, strict=True))
    assert found["cosines"] == pytest.approx((left * right).sum(1), abs=1e-5)


def test_blocks_are_grouped_in_thirds() -> None:
    assert late(6) == [4, 5]
    assert late(12) == [8, 9, 10, 11]
    assert late(2) == [1]
    assert groups(6) == {"early": [0, 1], "middle": [2, 3], "late": [4, 5], "all": [0, 1, 2, 3, 4, 5]}


def test_wrong_arguments_are_one_line(data: Path, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    assert load_encoder(folder).config.layers == 2
    for arguments, error in (
        ([str(folder), "--parts", "magic"], UnknownName),
        (["=x"], UsageError),
        (["a/b=x"], UsageError),
    ):
        call = [*arguments, "--data", str(data), "-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        with pytest.raises(error) as raised:
            CliRunner().invoke(encoder_methods.main, call, catch_exceptions=False)
        assert "\n" not in str(raised.value)
