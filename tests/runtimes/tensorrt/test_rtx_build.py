"""Every graph of every TensorRT recipe through the real parser and builder of TensorRT-RTX, on a machine without a GPU.

It cannot run an engine here, and it is not the TensorRT of a Jetson; it is the same family of parser and builder.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import fieldrun
from fieldrun.errors import EngineError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import read_tensors
from fieldrun_exporters.recipe import load_recipe, recipe_names
from fieldrun_runtimes.engines.graphs import whole_graph
from fieldrun_runtimes.tensorrt import device
from fieldrun_runtimes.tensorrt.build import build, compile_graph
from fieldrun_runtimes.tensorrt.key import EngineKey, keys_of
from fieldrun_runtimes.tensorrt.layers import part_shapes, wanted_precisions
from fieldrun_runtimes.tensorrt.library import load_library

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is not installed: pip install 'fieldrun[tensorrt-rtx]'",
)

RECIPES = [name for name in recipe_names() if load_recipe(name).tensorrt is not None]
CAPABILITIES = ("8.6", "8.9", "12.0")
NO_GPU = isinstance(device.find_gpu(), str)


@pytest.fixture(scope="module", params=RECIPES)
def bundle(request: pytest.FixtureRequest, toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rtx") / request.param
    return fieldrun.export(toy_checkpoint, out, recipe=request.param).path


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_graph_builds_in_its_precision(bundle: Path, capability: str, cache: Path) -> None:
    report = build(bundle, target="tensorrt-rtx", compute_capability=capability)
    graphs = Bundle.load(bundle).manifest.tensorrt
    assert graphs is not None
    assert [engine.graph for engine in report.engines] == list(graphs.names())
    wanted = wanted_precisions(read_tensors(bundle / "weights.safetensors"))
    for engine in report.engines:
        parts = {"pairs"} if engine.bucket.startswith("pairs") else set(wanted) - {"pairs"}
        assert engine.layers == {part: wanted[part] for part in parts}, (engine.graph, engine.layers)
        assert engine.fallen_back == engine.unchecked == []
        assert engine.bytes > 10_000
    assert len(list(cache.glob("*/*/*.engine"))) == len(report.engines)


def test_the_same_graph_gives_the_same_bytes(bundle: Path) -> None:
    opened, library = Bundle.load(bundle), load_library("tensorrt-rtx")
    key = next(iter(keys_of(opened, "tensorrt-rtx", library, None, "8.6").values()))
    shapes = part_shapes(read_tensors(bundle / "weights.safetensors"))
    model = whole_graph(opened.contents[key.graph], opened.contents["weights.safetensors"], key.graph)
    one, other = (compile_graph(library, model, key, shapes) for _ in range(2))
    assert one.engine == other.engine


def test_bytes_give_the_engine_that_the_files_give(bundle: Path) -> None:
    """The parser is given the graph with its weights inside; beside the same graph that it opens by its path."""
    opened, library = Bundle.load(bundle), load_library("tensorrt-rtx")
    shapes = part_shapes(opened.tensors())

    def by_path(network: Any, log: Any) -> Any:
        parser = library.OnnxParser(network, log)
        return types.SimpleNamespace(parse=lambda model: parser.parse_from_file(model))

    other: Any = types.SimpleNamespace(**vars(library) | {"OnnxParser": by_path})
    key = next(iter(keys_of(opened, "tensorrt-rtx", library, None, "8.6").values()))
    model = whole_graph(opened.contents[key.graph], opened.contents["weights.safetensors"], key.graph)
    found = compile_graph(library, model, key, shapes)
    path: Any = str(bundle / key.graph)
    assert found.engine == compile_graph(other, path, key, shapes).engine
    assert set(found.layers) == set(shapes) - {"pairs"}


def test_a_refused_graph_is_in_the_parsers_words() -> None:
    library = load_library("tensorrt-rtx")
    int_product = helper.make_graph(
        [helper.make_node("MatMul", ["a", "a"], ["b"], name="b")],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.INT32, [2, 2])],
        [helper.make_tensor_value_info("b", TensorProto.INT32, [2, 2])],
    )
    model = helper.make_model(int_product, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    key = EngineKey(
        graph="refused.onnx", graph_sha256="", weights_sha256="", target="tensorrt-rtx", tensorrt="", cuda=None,
        compute_capability="8.6", device=None, machine="", jetpack=None, bucket="1x1", options={},
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"parser refuses refused\.onnx: .*INT32") as caught:
        compile_graph(library, model.SerializeToString(), key, {})
    assert "\n" not in str(caught.value)


PROGRAM = """
import sys
import fieldrun
from fieldrun.errors import FieldrunError

try:
    with fieldrun.load(sys.argv[1], engine=sys.argv[2], provider=sys.argv[3] or None) as model:
        print(model.predict(["a good film"], "mood"))
except FieldrunError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU on this machine")
@pytest.mark.parametrize(
    ("engine", "provider", "says"),
    [
        ("tensorrt-rtx", "", "EngineError: no NVIDIA driver on this machine: libcuda.so.1 cannot be loaded"),
        ("onnxruntime", "cuda", "EngineError: "),
        ("onnxruntime", "cuda-graph", "EngineError: "),
    ],
)
def test_an_asked_for_gpu_that_is_not_there_ends_cleanly(tiny: Path, engine: str, provider: str, says: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny), engine, provider], capture_output=True, text=True, check=False
    )
    assert result.returncode == 9, result.stderr
    assert result.stdout == "", "no answer from the CPU"
    assert result.stderr.startswith(says)
    assert len(result.stderr.splitlines()) == 1


BUILD = """
import json, sys
import fieldrun

sys.stdin.readline()
report = fieldrun.build(sys.argv[1], target="tensorrt-rtx", compute_capability="8.6")
print(json.dumps([engine.reused for engine in report.engines]))
"""


def test_two_processes_at_once_build_each_engine_once(tiny: Path) -> None:
    """With the real builder; both start at a word, and one of them then waits for the other."""
    command = [sys.executable, "-c", BUILD, str(tiny)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=300) for process in both]
    assert [(process.returncode, error) for process, (_, error) in zip(both, ended, strict=True)] == [(0, ""), (0, "")]
    assert sorted(json.loads(out) for out, _ in ended) == [[False] * 6, [True] * 6]
