"""The call sequence of the TensorRT engines against strict doubles (`doubles.py`), without TensorRT and GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import EngineError, MissingDependency, UsageError
from fieldrun.formats.bundle import Bundle
from fieldrun_runtimes.tensorrt import device
from fieldrun_runtimes.tensorrt.build import build
from fieldrun_runtimes.tensorrt.library import MODULES
from tests.runtimes.tensorrt import doubles

TEXTS = ["a good film", "the card did not work", "rain", "who wrote it ?", "it was very wet to day and all"]
VERSIONS = [("10.3.0", True), ("11.4.0.106", True), ("11.4.0.106", False)]


@pytest.mark.parametrize(("version", "typed_flag"), VERSIONS)
def test_the_engine_gives_what_its_graph_means(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, version: str, typed_flag: bool
) -> None:
    machine = doubles.install(monkeypatch, version=version, typed_flag=typed_flag)
    report = build(tiny)
    assert [engine.bucket for engine in report.engines] == ["1x8", "1x24", "4x8", "4x24", "pairs 1", "pairs 4"]
    assert (report.compute_capability, report.device) == ("8.6", "Double GPU")
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    with fieldrun.load(tiny, engine="numpy") as plain, fieldrun.load(tiny, engine="tensorrt") as model:
        for texts in ([TEXTS[0]], TEXTS):
            expected, found = plain.forward(texts), model.forward(texts)
            np.testing.assert_allclose(found.field, expected.field, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            model.predict_proba(pairs, "same"), plain.predict_proba(pairs, "same"), rtol=0, atol=1e-4
        )
    assert machine.calls.count("Runtime") == 1
    opened = machine.calls.count("deserialize_cuda_engine")
    assert machine.calls.count("execute_async_v3") == 2 * opened, "once to set up, once to capture, then graphs alone"
    assert machine.calls.count("cudaGraphLaunch") >= 4


def test_rtx_is_the_same_lines(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, version="1.7.1.116", rtx=True)
    build(tiny, target="tensorrt-rtx")
    with fieldrun.load(tiny, engine="tensorrt-rtx") as model:
        assert model.engine == "tensorrt-rtx"
        assert len(model.predict(TEXTS, "mood")) == len(TEXTS)


def test_an_engine_that_cannot_be_captured_is_called_each_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    machine.capturable = False
    build(tiny)
    with fieldrun.load(tiny, engine="numpy") as plain, fieldrun.load(tiny, engine="tensorrt") as model:
        found, expected = model.field(TEXTS), plain.field(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert "cudaGraphLaunch" not in machine.calls


def test_results_stay_after_the_next_call_and_the_model(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    build(tiny)
    with fieldrun.load(tiny, engine="tensorrt") as model:
        first = model.field(TEXTS[:1])
        kept = first.copy()
        model.field(TEXTS[1:2])
        assert machine.memory
    del model
    gc.collect()
    np.testing.assert_array_equal(first, kept)
    assert not machine.memory, "device memory is freed with the model"
    assert not machine.pinned


def test_threads_share_an_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    build(tiny)
    with fieldrun.load(tiny, engine="tensorrt") as model:
        alone = [model.field([text]) for text in TEXTS]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda text: model.field([text]), TEXTS * 3))
    for k, field in enumerate(together):
        np.testing.assert_array_equal(field, alone[k % len(TEXTS)])


def test_verify_holds_a_gpu_to_its_own_tolerance(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    build(tiny)
    report = fieldrun.verify(tiny, engine="tensorrt")
    assert report.passed, report
    assert report.engines[0].tolerance == 0.01
    assert fieldrun.verify(tiny, engine="numpy").engines[0].tolerance == 1e-5


def test_without_engines_the_error_is_the_command(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    with pytest.raises(EngineError, match=rf"no engine of .*; run: fieldrun build {tiny} --target tensorrt"):
        fieldrun.load(tiny, engine="tensorrt")
    assert "Runtime" not in machine.calls


def test_a_bundle_without_such_graphs_names_a_recipe(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    with pytest.raises(EngineError, match=r"no TensorRT graphs .*jetson-orin-int8"):
        fieldrun.load(toy_bundle, engine="tensorrt")


def test_no_driver_no_runtime(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch, gpu=None)
    calls: list[Callable[[], object]] = [lambda: fieldrun.load(tiny, engine="tensorrt"), lambda: build(tiny)]
    for call in calls:
        with pytest.raises(EngineError, match="no NVIDIA driver on this machine"):
            call()
    assert machine.calls == []


def test_a_missing_package_names_the_command(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    build(tiny)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "cuda")
    with pytest.raises(MissingDependency, match=r"cuda-bindings.*pip install 'fieldrun\[tensorrt\]'") as caught:
        fieldrun.load(tiny, engine="tensorrt")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("target", "command"),
    [("tensorrt", "apt-get install python3-libnvinfer on a Jetson"), ("tensorrt-rtx", "fieldrun[tensorrt-rtx]")],
)
def test_a_missing_tensorrt_names_the_command(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, target: str, command: str
) -> None:
    doubles.install(monkeypatch)
    for name in MODULES[target]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it was not installed
    for call in (lambda: fieldrun.load(tiny, engine=target), lambda: build(tiny, target=target)):
        with pytest.raises(MissingDependency) as caught:
            call()
        assert command in str(caught.value)


def test_bindings_without_their_library_name_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt.py").write_text(f"raise ImportError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    doubles.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(EngineError, match=f"tensorrt is installed and cannot be imported: {said}; install it again"):
        fieldrun.load(tiny, engine="tensorrt")


def test_cuda_python_that_is_newer_than_the_driver_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    runtime = sys.modules["cuda.bindings.runtime"]
    monkeypatch.setattr(runtime, "cudaSetDevice", lambda _: (doubles.Code(35),))
    with pytest.raises(EngineError, match=r"cudaSetDevice: .*newer than this driver; pip install 'cuda-bindings<13'"):
        fieldrun.load(tiny, engine="tensorrt")


def test_an_old_tensorrt_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, version="8.6.1")
    with pytest.raises(EngineError, match=r"tensorrt 8\.6\.1 is too old: 10\.3 or later"):
        build(tiny)


def test_a_provider_belongs_to_onnxruntime(tiny: Path) -> None:
    with pytest.raises(UsageError, match="the provider 'cuda' is ONNX Runtime's"):
        fieldrun.load(tiny, engine="numpy", provider="cuda")


@pytest.mark.parametrize("kind", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName"])
def test_a_driver_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    doubles.install(monkeypatch)
    monkeypatch.setattr(doubles.Driver, kind, lambda *arguments: 999)
    found = device.find_gpu()
    assert isinstance(found, str)
    assert "driver" in found


def test_jetpack_is_read_from_its_release_file(tmp_path: Path) -> None:
    assert device.jetpack(tmp_path) is None
    (tmp_path / "etc").mkdir()
    release = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 2024\n"
    (tmp_path / "etc/nv_tegra_release").write_text(release)
    assert device.jetpack(tmp_path) == "36.4.0"


def test_machines_differ_by_any_part_of_their_identity(tmp_path: Path) -> None:
    gpu = device.Gpu(name="a", compute_capability="8.7", uuid="00", cuda="12.6")
    other = device.Gpu(name="a", compute_capability="8.7", uuid="01", cuda="12.6")
    (tmp_path / "etc").mkdir()
    seen = {device.machine_id(gpu, tmp_path), device.machine_id(other, tmp_path), device.machine_id(None, tmp_path)}
    (tmp_path / "etc/machine-id").write_text("abc\n")
    seen.add(device.machine_id(gpu, tmp_path))
    assert len(seen) == 4
    assert device.machine_id(gpu, tmp_path) == device.machine_id(gpu, tmp_path)


def test_the_graphs_are_those_of_the_manifest(tiny: Path) -> None:
    graphs = Bundle.load(tiny).manifest.tensorrt
    assert graphs is not None
    assert sorted(graphs.names()) == sorted(path.name for path in tiny.glob("trt-*.onnx"))
