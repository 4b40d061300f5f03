"""The main job on the shipped student: the checkpoint exports, the bundle verifies, the demo runs, accuracy holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.evaluation.metrics import wilson_interval
from fieldrun.formats.bundle import REFERENCE_BUNDLE, Bundle
from fieldrun.formats.packing import expand
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import read_tensors
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_benchmarks.harness.record import read_record

SAMPLES = Path("benchmarks/fieldrun_benchmarks/data")


@pytest.mark.slow
def test_the_demo_runs_from_checkpoint_to_label(repository: Path, tmp_path: Path) -> None:
    script = f"from pathlib import Path; from studies.demo import main; main(Path({str(tmp_path / 'out')!r}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=repository)
    assert result.returncode == 0, result.stderr
    assert "1. export" in result.stdout
    assert result.stdout.count("fieldrun ") >= 3
    fresh, shipped = Bundle.load(tmp_path / "out"), Bundle.load("reference")
    weights = "weights.safetensors"
    assert fresh.manifest.files[weights] == shipped.manifest.files[weights]


@pytest.mark.parametrize("engine", ["native", "onnxruntime", "numpy"])
def test_the_shipped_bundle_replays_its_golden_texts(engine: str) -> None:
    report = fieldrun.verify("reference", engine=engine)
    assert report.passed
    assert report.max_abs_field <= 1e-5


@pytest.mark.parametrize("task", ["banking77", "clinc150"])
def test_accuracy_on_the_shipped_sample_is_that_of_the_records(repository: Path, task: str) -> None:
    from fieldrun.formats.storage import read_json

    sample = read_tsv(repository / SAMPLES / f"{task}.tsv")
    with fieldrun.load("reference", engine="numpy") as model:
        predicted = model.predict(sample.texts, task)
    hits = sum(a == b for a, b in zip(sample.labels, predicted, strict=True))
    low, high = wilson_interval(hits, len(sample))
    record = read_json(repository / "benchmarks" / "records" / "accuracy-cpu-small.json")
    assert low <= record["tasks"][task]["accuracy"] <= high


def test_the_shipped_bundle_is_the_shipped_checkpoint(repository: Path) -> None:
    checkpoint = Checkpoint.load("reference")
    weights = expand(read_tensors(REFERENCE_BUNDLE / "weights.safetensors"))
    assert 28_000_000 <= sum(t.size for n, t in weights.items() if not n.endswith("scale")) <= 32_000_000
    texts = [t for t in read_tsv(repository / SAMPLES / "banking77.tsv").texts[:40] if isinstance(t, str)]
    with fieldrun.load("reference", engine="onnxruntime") as model:
        field = model.field(texts)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.decode("utf-8"))
    want = forward(checkpoint.config, checkpoint.tensors, pad_ids([tokenizer.encode(t).ids for t in texts]))
    cosine = (field * want).sum(1) / np.linalg.norm(field, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.99


def test_the_shipped_bundle_is_small() -> None:
    assert Bundle.load("reference").total_bytes() <= 16_000_000
    assert REFERENCE_BUNDLE.is_dir()


def test_the_shipped_bundle_carries_its_proof(repository: Path) -> None:
    """What its report says of every task is what the record of accuracy, measured by running it, says."""
    proof = read_json(REFERENCE_BUNDLE / "report.json")["proof"]
    assert proof["field"]["mean_cosine"] > 0.99
    records = repository / "benchmarks" / "records"
    measured = {kind: read_record(records / f"accuracy-{kind}.json", "accuracy") for kind in ("cpu-small", "cpu-fp32")}
    for task in Bundle.load("reference").manifest.tasks:
        said = proof["accuracy"]["tasks"][task.name]
        assert said["n"] == measured["cpu-small"]["tasks"][task.name]["n"]
        for key, kind in (("accuracy", "cpu-small"), ("fp32", "cpu-fp32")):
            # a text on the edge of two labels may fall the other way in an engine
            assert abs(said[key] - measured[kind]["tasks"][task.name]["accuracy"]) * said["n"] <= 2
        assert said["ci95"][0] <= said["drop"] <= said["ci95"][1]
    assert proof["accuracy"]["mean_drop"] <= 0.3
