"""Encoder checkpoint -> bundle: graphs against the NumPy forward pass, what became int8, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import (
    CheckpointError,
    ExportError,
    FieldrunError,
    OutputExists,
    ParityError,
    RecipeError,
    SchemaTooNew,
    UsageError,
)
from fieldrun.formats.bundle import Bundle, GraphNetwork, seal
from fieldrun.formats.storage import read_json, sha256_file, write_json
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder import source as module
from fieldrun_exporters.encoder.activations import fields, input_ranges
from fieldrun_exporters.encoder.deployed import DeployedEncoder
from fieldrun_exporters.encoder.graph import encoder_graph
from fieldrun_exporters.encoder.importing import load_encoder
from fieldrun_exporters.encoder.model import Encoder, forward
from fieldrun_exporters.export import ExportReport
from fieldrun_exporters.student.passes import PassReport
from fieldrun_runtimes.engines.onnxruntime_engine import OnnxRuntimeEngine
from fieldrun_runtimes.verify import EngineReport

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportReport]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        kind: fieldrun.export(encoder_folder, root / kind, recipe=encoder_recipe(kind), calibration=texts)
        for kind in ("fp32", "int8")
    }


def test_a_float_bundle_gives_the_forward_pass_in_every_bucket(
    exported: dict[str, ExportReport], encoder_folder: Path, texts: list[str]
) -> None:
    encoder = Encoder.load(encoder_folder)
    with fieldrun.load(exported["fp32"].path) as model:
        assert (model.engine, model.tasks) == ("onnxruntime", ())
        ids = model.token_ids(texts)
        want = np.concatenate([forward(encoder, pad_ids([row])) for row in ids])
        assert np.abs(model.field(texts) - want).max() < 1e-5
        for i in (0, 19, 40):
            assert np.abs(model.field([texts[i]]) - want[i]).max() < 1e-5
        engine = OnnxRuntimeEngine(Bundle.load(exported["fp32"].path), 1)
        for bucket in engine.buckets:
            rows = [i for i, row in enumerate(ids) if len(row) <= bucket.length][:9]
            assert np.abs(engine.run_bucket([ids[i] for i in rows], bucket)[0] - want[rows]).max() < 1e-5
        cosine = (want[0] @ want[1]) / np.linalg.norm(want[0]) / np.linalg.norm(want[1])
        assert model.similarity(texts[0], texts[1]).item() == pytest.approx(float(cosine), abs=1e-5)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_what_is_reported_is_in_the_bundle_and_verifies(exported: dict[str, ExportReport], kind: str) -> None:
    report = exported[kind]
    bundle = Bundle.load(report.path)
    assert isinstance(bundle.manifest.network, GraphNetwork)
    assert report.bytes == bundle.total_bytes()
    assert fieldrun.verify(report.path).passed
    stored, as_json = read_json(report.path / "report.json"), json.loads(json.dumps(report.to_dict()))
    assert {key: stored[key] for key in ("passes", "parity", "operators", "proof")} == {
        key: as_json[key] for key in ("passes", "parity", "operators", "proof")
    }
    assert stored["import"] == {"kind": "encoder", "pooling": "mean"}
    proof = report.proof["field"]
    assert 0.99 < proof["min_cosine"] <= proof["p1_cosine"] <= proof["mean_cosine"] <= 1 + 1e-6
    assert 0.5 < proof["rank_agreement"] <= 1
    assert "2 layers of width 32, 4 heads" in (report.path / "CARD.md").read_text("utf-8")


def test_a_bundle_whose_every_field_moved_does_not_verify(exported: dict[str, ExportReport], tmp_path: Path) -> None:
    """The tolerance for the text that rounding moves most lets it pass, that for the least moved quarter does not."""
    rounding = exported["int8"].proof["rounding"]
    assert rounding["typical_tolerance"] == max(1e-5, min(4 * rounding["quartile_abs"], rounding["golden_tolerance"]))
    folder = Path(shutil.copytree(exported["int8"].path, tmp_path / "bundle"))

    def change(move: Callable[[Array], None]) -> EngineReport:
        golden, manifest = read_json(exported["int8"].path / "golden.json"), read_json(folder / "manifest.json")
        fields = np.array(golden["fields"])
        move(fields)
        write_json(folder / "golden.json", golden | {"fields": fields.tolist()})
        path = folder / "golden.json"
        manifest["files"]["golden.json"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(folder / "manifest.json", seal(manifest | {"golden_tolerance": 0.3}))
        return fieldrun.verify(folder).engines[0]

    def some(fields: Array) -> None:
        fields[: len(fields) // 2] += 0.1

    def every(fields: Array) -> None:
        fields += 0.1

    moved = change(some)
    assert (moved.passed, moved.typical_tolerance) == (True, rounding["typical_tolerance"])
    assert moved.max_abs_field > 0.09
    assert moved.quartile_abs_field <= rounding["typical_tolerance"]
    moved = change(every)
    assert moved.max_abs_field < moved.tolerance == 0.3
    assert not moved.passed


def test_every_map_runs_as_int8_and_the_table_is_int8_rows(
    exported: dict[str, ExportReport], encoder_folder: Path
) -> None:
    report, source = exported["int8"], Encoder.load(encoder_folder)
    assert report.operators["optimised"]["MatMulIntegerToFloat"] == 4 * source.config.layers
    assert "DequantizeLinear" not in report.operators["optimised"]
    stored = read_tensors(report.path / "weights.safetensors")
    dense = [
        name for name in stored if name.endswith((".qkv.weight", ".attention.weight", ".up.weight", ".down.weight"))
    ]
    assert len(dense) == 4 * source.config.layers
    assert {stored[name].dtype for name in (*dense, "table")} == {np.dtype("i1")}
    assert max(int(np.abs(stored[name]).max()) for name in dense) == 63
    word = source.tensors["embeddings.word"]
    assert np.abs(stored["table"] * stored["table.scale"] - word).max() <= stored["table.scale"].max() * 0.501
    assert report.passes[1].changed["layer1.down"]["weights"] == source.tensors["layer1.down.weight"].size
    size = {kind: (exported[kind].path / "weights.safetensors").stat().st_size for kind in exported}
    assert size["int8"] < 0.5 * size["fp32"]


def test_same_inputs_same_bytes(
    exported: dict[str, ExportReport], encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path
) -> None:
    again = fieldrun.export(encoder_folder, tmp_path / "again", recipe=encoder_recipe("int8"), calibration=texts)
    first, second = ({p.name: sha256_file(p) for p in r.path.iterdir()} for r in (exported["int8"], again))
    assert first == second


def test_ranges_are_percentiles_of_the_inputs_of_the_maps(encoder_folder: Path, texts: list[str]) -> None:
    encoder = Encoder.load(encoder_folder)
    with_pad = [[2, 5, 6, 3], [2, 7, 3], [2, 8, 9, 10, 11, 3]]
    seen: dict[str, list[Any]] = {}
    for row in with_pad:
        forward(encoder, pad_ids([row]), hook=lambda name, x: seen.setdefault(name, []).append(np.abs(x).ravel()))
    ranges = input_ranges(encoder, with_pad, 97.0)
    alone = np.concatenate([forward(encoder, pad_ids([row])) for row in with_pad])
    assert np.abs(fields(encoder, with_pad) - alone).max() < 1e-5
    assert set(ranges) == {f"layer{k}.{name}" for k in range(2) for name in ("qkv", "attention", "up", "down")}
    for name, value in ranges.items():
        want = np.percentile(np.concatenate(seen[name.replace("qkv", "query")]), 97.0)
        assert value == pytest.approx(float(want), rel=1e-4)


def low_rank(encoder: Encoder) -> Encoder:
    """The encoder with fewer numbers per head in layer 0, a narrower feed-forward in layer 1, and random values."""
    rng, heads, tensors = np.random.default_rng(3), encoder.config.heads, dict(encoder.tensors)
    hidden = encoder.config.hidden
    for name, size in (("query", 5), ("key", 5), ("value", 3)):
        tensors[f"layer0.{name}.weight"] = rng.standard_normal((hidden, heads * size)).astype(np.float32) / 6
        tensors[f"layer0.{name}.bias"] = rng.standard_normal(heads * size).astype(np.float32) / 6
    tensors["layer0.attention.weight"] = rng.standard_normal((heads * 3, hidden)).astype(np.float32) / 4
    kept = slice(0, 40)
    tensors |= {
        "layer1.up.weight": tensors["layer1.up.weight"][:, kept],
        "layer1.up.bias": tensors["layer1.up.bias"][kept],
    }
    tensors["layer1.down.weight"] = tensors["layer1.down.weight"][kept]
    return replace(encoder, tensors=tensors)


def one_layer(encoder: Encoder) -> Encoder:
    kept = {name: tensor for name, tensor in encoder.tensors.items() if not name.startswith("layer1.")}
    return replace(encoder, tensors=kept, config=replace(encoder.config, layers=1, pooling="cls", normalize=True))


@pytest.mark.parametrize("change", [low_rank, one_layer])
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_inner_sizes_layers_and_pooling_are_free(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path, change: Any, kind: str
) -> None:
    encoder: Encoder = change(Encoder.load(encoder_folder))
    encoder.save(tmp_path / "c")
    report = fieldrun.export(tmp_path / "c", tmp_path / "b", recipe=encoder_recipe(kind), calibration=texts)
    assert report.parity[0].max_abs < (1e-5 if kind == "fp32" else 0.3)
    with fieldrun.load(tmp_path / "b") as model:
        found = model.field(texts[:5])
        want = np.concatenate([forward(encoder, pad_ids([row])) for row in model.token_ids(texts[:5])])
    assert np.abs(found - want).max() < (1e-5 if kind == "fp32" else 0.3)
    if encoder.config.normalize:
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_map_may_keep_a_float_input(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path
) -> None:
    recipe = encoder_recipe("int8", precision='tables = "fp32"\ndense = "int8"\ndown = "int8-weights"\nup = "fp32"')
    report = fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=texts)
    assert report.operators["optimised"]["MatMulIntegerToFloat"] == 2 * 2
    stored = read_tensors(tmp_path / "b" / "weights.safetensors")
    assert stored["layer0.down.weight"].dtype == np.int8
    assert int(np.abs(stored["layer0.down.weight"]).max()) == 127
    assert stored["layer0.up.weight"].dtype == stored["table"].dtype == np.float32


@pytest.fixture
def refused(encoder_folder: Path, tmp_path: Path, texts: list[str], encoder_recipe: Write) -> Callable[..., str]:
    """Export the encoder, expect an error of one line, and see that nothing was written."""

    def call(kind: type[FieldrunError], checkpoint: Path = encoder_folder, **changes: Any) -> str:
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        arguments: dict[str, Any] = {"calibration": texts, "recipe": encoder_recipe("int8")} | changes
        with pytest.raises(kind) as caught:
            fieldrun.export(checkpoint, place / "out", **arguments)
        assert list(place.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def test_what_an_encoder_cannot_be_exported_with(
    refused: Callable[..., str], bert_folder: Path, encoder_recipe: Write
) -> None:
    assert "no heads" in refused(UsageError, max_drop=0.5)
    assert "import-encoder" in refused(CheckpointError, bert_folder)
    assert "an encoder has no such part" in refused(RecipeError, recipe="cpu-int8")
    assert "precision.offset-2: an encoder has no such part" in refused(RecipeError, recipe="cpu-small")
    fp16 = encoder_recipe("int8", precision='tables = "fp16"\ndense = "int8"', passes='["fold", "int8", "fp16"]')
    assert "an encoder has no pass 'fp16'; it has fold, lowrank, int8, palettize" in refused(RecipeError, recipe=fp16)
    assert "[tensorrt] is for students, not for an encoder" in refused(RecipeError, recipe="tensorrt-fp32")
    assert "min_cosine" in refused(ParityError, recipe=encoder_recipe("int8", min_cosine=1.1))


def test_a_pass_that_does_nothing_is_seen(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(deployed: DeployedEncoder, *_: Any) -> tuple[DeployedEncoder, PassReport]:
        return deployed, PassReport(name="int8", bytes_before=2, bytes_after=1)

    monkeypatch.setattr(module, "int8_encoder", nothing)
    assert "but the passes left it in fp32" in refused(ExportError)


def test_a_product_that_falls_out_of_int8_is_seen(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    build = encoder_graph

    def wrong(deployed: DeployedEncoder, *rest: Any) -> Any:
        model = build(deployed, *rest)
        for node in model.graph.node:
            if node.name == "layer1.up.sum":  # an Add of the bias: ONNX Runtime makes a float Gemm of it
                node.op_type = "Add"
        return model

    monkeypatch.setattr(module, "encoder_graph", wrong)
    assert "8 products must be int8, but ONNX Runtime runs 7" in refused(ExportError)


def test_calibration_that_reaches_nothing(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = input_ranges

    def without(*arguments: Any) -> Any:
        return {name: value for name, value in find(*arguments).items() if name != "layer1.down"}

    monkeypatch.setattr(module, "input_ranges", without)
    assert "no calibration text uses the layer 'layer1.down'" in refused(ExportError)


def test_checkpoints_keep_what_they_were(bert_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    first, again = load_encoder(bert_folder), Encoder.load(encoder_folder)
    assert again.config == first.config
    assert (again.tokenizer, again.licence, again.provenance) == (first.tokenizer, first.licence, first.provenance)
    assert all(np.array_equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    halves = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in first.tensors.items()}
    replace(first, tensors=halves).save(tmp_path / "halves")
    assert all(np.array_equal(Encoder.load(tmp_path / "halves").tensors[n], t) for n, t in halves.items())
    sizes = [(folder / "encoder.safetensors").stat().st_size for folder in (tmp_path / "halves", encoder_folder)]
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(OutputExists):
        first.save(tmp_path / "halves")


def test_a_damaged_checkpoint_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    load_encoder(bert_folder).save(tmp_path / "c")
    weights = tmp_path / "c" / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match"):
        Encoder.load(tmp_path / "c")
    about = (tmp_path / "c" / "encoder.json").read_text()
    (tmp_path / "c" / "encoder.json").write_text(about.replace('"schema": 1', '"schema": 9'))
    with pytest.raises(SchemaTooNew):
        Encoder.load(tmp_path / "c")
    (tmp_path / "c" / "encoder.json").unlink()
    with pytest.raises(CheckpointError, match="is not an encoder checkpoint, or an incomplete copy"):
        Encoder.load(tmp_path / "c")
    with pytest.raises(CheckpointError, match="import-encoder"):
        Encoder.load(tmp_path / "nowhere")


def test_killed_in_the_middle_nothing_is_left(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path
) -> None:
    program = (
        "import os, signal, sys, fieldrun\n"
        "kill = lambda phase, done, total: phase == 'parity' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "fieldrun.export(sys.argv[1], sys.argv[2], recipe=sys.argv[3], calibration=sys.argv[4:], progress=kill)\n"
    )
    place, recipe = tmp_path / "place", encoder_recipe("int8")
    command = [sys.executable, "-c", program, str(encoder_folder), str(place / "out"), str(recipe), *texts]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert all(path.name.startswith(".out.partial-") for path in place.iterdir()), "only a hidden part may remain"


def test_no_export_is_granted_more_than_such_a_recipe_can_need(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rounding moved the fields of a float bundle by 0.3: below 1, and not equal all the same."""
    monkeypatch.setattr("fieldrun_exporters.golden._FLOOR", 0.3)
    with pytest.raises(ExportError, match=r"would be granted 0\.3, more than the 0\.0\d+ at which .* counts as equal"):
        fieldrun.export(encoder_folder, tmp_path / "b", recipe=encoder_recipe("fp32"), calibration=texts)
    assert not (tmp_path / "b").exists()
