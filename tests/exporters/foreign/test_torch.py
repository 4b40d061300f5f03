"""A BERT that torch exported to ONNX becomes a bundle with torch's fields; both of torch's exporters are tried."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import ExportError
from fieldrun_exporters.foreign.fixed import fixed_graph
from fieldrun_exporters.foreign.read import read_foreign
from tests.tiny_bert import write_bert
from tests.toy import toy_tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fieldrun[distill]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
TEXTS = ["a good film", "who wrote it ?", "it was very wet to day and all"]
EXPORTERS = [
    "torchscript",
    pytest.param(
        "dynamo",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("onnxscript") is None, reason="torch's newer exporter needs onnxscript"
        ),
    ),
]


class States(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Token states by position of the arguments, as an exporter wants them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, types: Any) -> Any:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder that torch's exporter made of the tiny BERT, and the model in torch."""
    source = write_bert(tmp_path_factory.mktemp("bert"))
    folder = tmp_path_factory.mktemp("onnx")
    model = transformers.AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    ids = torch.ones((2, 9), dtype=torch.int64)
    arguments = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    settings: dict[str, Any] = {"input_names": INPUTS, "output_names": ["last_hidden_state"]}
    if request.param == "dynamo":
        free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=40)}
        settings |= {"dynamo": True, "dynamic_shapes": (free, free, free), "verbose": False}
    else:
        settings |= {"dynamo": False, "dynamic_axes": {name: {0: "batch", 1: "length"} for name in INPUTS}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of what it will drop and what it cannot trace
        torch.onnx.export(States(model).eval(), arguments, str(folder / "model.onnx"), **settings)
    shutil.copy(source / "tokenizer.json", folder)
    return folder, model


def test_the_bundle_gives_torch_s_fields(
    exported: tuple[Path, Any], tmp_path: Path, texts: list[str], encoder_recipe: Callable[..., Path]
) -> None:
    folder, model = exported
    fieldrun.export(folder, tmp_path / "bundle", recipe=encoder_recipe("fp32"), calibration=texts)
    tokenizer = toy_tokenizer()
    with fieldrun.load(tmp_path / "bundle") as bundle, torch.inference_mode():
        for text in TEXTS:
            ids = torch.tensor([tokenizer.encode(text).ids])
            want = model(ids, torch.ones_like(ids)).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(bundle.field([text])[0], want, rtol=0, atol=2e-6)


def test_no_name_is_one_that_onnxruntime_makes_again(exported: tuple[Path, Any]) -> None:
    graph = fixed_graph(read_foreign(exported[0]), 3, 32, 1, 16).graph
    names = {name for node in graph.node for name in (*node.input, *node.output) if name}
    assert {name for name in names if not name.startswith(("model.", "made."))} == {"ids", "output"}


def test_a_bucket_beyond_the_positions_says_so(exported: tuple[Path, Any], tmp_path: Path) -> None:
    texts = [" ".join(["a good film"] * 15) + f" {i}" for i in range(20)]
    with pytest.raises(ExportError, match=r"on a text of \d+ tokens: .* set shorter buckets.lengths in a recipe"):
        fieldrun.export(exported[0], tmp_path / "bundle", recipe="encoder-fp32", calibration=texts)
