"""Build the ONNX graphs of an encoder: one per bucket, fixed shapes, all weights in one file that they share.

Standard operators of opset 17. States are matrices `(batch * length, hidden)`, so that ONNX Runtime makes one node of a
product and its bias. The padding mask is computed from the ids, inside the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..builder import GraphBuilder
from .deployed import DeployedEncoder

__all__ = ["encoder_graph"]

_MASKED = -1e30  # as in `model`


class _Builder(GraphBuilder):
    deployed: DeployedEncoder

    def number(self, value: float, name: str) -> str:
        """A float32 scalar that nodes share."""
        return self.constant(name, np.array(value, np.float32))

    def words(self, batch: int, length: int) -> str:
        """The table's rows for the ids, `(batch, length, hidden)`; of a palette only these rows are decoded."""
        if "table" in self.stored:
            words = self.op("Gather", [self.weight("table"), "ids"], "words", axis=0)
        else:
            codes = self.op("Gather", [self.weight("table.codes.0"), "ids"], "words.codes", axis=0)
            words = self.decoded("table", codes, batch * length)
            words = self.shape(words, "words", batch, length, self.deployed.config.hidden)
        if self.deployed.precision("table") == "fp32":
            return words
        scales = self.op("Gather", [self.weight("table.scale"), "ids"], "words.scales", axis=0)
        if self.stored["table.scale"].dtype == np.float16:
            scales = self.op("Cast", [scales], "words.scales.floats", to=TensorProto.FLOAT)
        return self.op("Mul", [self.op("Cast", [words], "words.steps", to=TensorProto.FLOAT), scales], "words.floats")

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """The layer norm `name` of `x`."""
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.op("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)

    def gelu(self, x: str, name: str) -> str:
        """The exact GELU, in the spelling that ONNX Runtime makes one node of."""
        inner = self.op("Erf", [self.op("Div", [x, self.number(2**0.5, "sqrt2")], f"{name}.scaled")], f"{name}.erf")
        inner = self.op("Mul", [x, self.op("Add", [inner, self.number(1, "one")], f"{name}.cdf")], f"{name}.twice")
        return self.op("Mul", [inner, self.number(0.5, "half")], name)


def encoder_graph(
    deployed: DeployedEncoder,
    offsets: Mapping[str, tuple[int, int]],
    batch: int,
    length: int,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Return the graph ids `(batch, length) int32`, padded at the end with 0 -> output `(batch, hidden) float32`.

    `offsets` gives every tensor's byte offset and length in the weights file.
    """
    config, b = deployed.config, _Builder(deployed, offsets)
    rows, hidden = batch * length, config.hidden
    words = b.words(batch, length)
    x = b.op("Add", [words, _positions(b, length, hidden)], "embedded")
    x = b.norm(b.shape(x, "embedded.rows", rows, hidden), "embeddings.norm", config.epsilon)

    used = b.op("Cast", ["ids"], "used", to=TensorProto.BOOL)
    mask = b.op("Where", [used, b.number(0, "zero"), b.number(_MASKED, "masked")], "mask.row")
    mask = b.shape(mask, "mask", batch, 1, 1, length)
    for k in range(config.layers):
        x = _layer(b, deployed, k, x, mask, batch, length)

    if config.pooling == "cls":
        first = b.constant("first", np.arange(batch, dtype=np.int64) * length)
        pooled = b.op("Gather", [x, first], "pooled", axis=0)
    else:
        ones = b.op("Cast", [used], "ones", to=TensorProto.FLOAT)
        last = b.constant("last", np.array([1], np.int64))
        shares = b.op("Div", [ones, b.op("ReduceSum", [ones, last], "count", keepdims=1)], "shares")
        texts = b.shape(x, "states", batch, length, hidden)
        pooled = b.op("MatMul", [b.shape(shares, "shares.row", batch, 1, length), texts], "pooled.row")
        pooled = b.shape(pooled, "pooled", batch, hidden)
    if config.normalize:
        norm = b.op("ReduceL2", [pooled], "norm", axes=[1], keepdims=1)
        pooled = b.op("Div", [pooled, b.op("Max", [norm, b.number(1e-12, "floor")], "norm.floor")], "unit")
    b.nodes[-1].output[0] = "output"
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, length])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, hidden])
    return b.model([ids], [output], f"encoder-b{batch}-l{length}", metadata)


def _positions(b: GraphBuilder, length: int, hidden: int) -> str:
    """The first `length` rows of the position table: the beginning of the same bytes."""
    proto = b.initializers[b.weight("positions")]
    del proto.dims[:]
    proto.dims.extend([length, hidden])
    next(entry for entry in proto.external_data if entry.key == "length").value = str(4 * length * hidden)
    return "positions"


def _layer(b: _Builder, deployed: DeployedEncoder, k: int, x: str, mask: str, batch: int, length: int) -> str:
    config, layer, heads = deployed.config, f"layer{k}", deployed.config.heads
    qk, vo, _ = deployed.inner_sizes(k)
    sizes = b.constant(f"sizes.{qk}.{vo}", np.array([heads * qk, heads * qk, heads * vo], np.int64))
    parts = [f"{layer}.{name}.columns" for name in ("query", "key", "value")]
    b.nodes.append(helper.make_node("Split", [b.dense(f"{layer}.qkv", x), sizes], parts, name=f"{layer}.split", axis=1))
    turned: list[str] = []
    for name, part, size, order in zip(
        ("query", "key", "value"), parts, (qk, qk, vo), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
    ):
        by_head = b.shape(part, f"{layer}.{name}.heads", batch, length, heads, size)
        turned.append(b.op("Transpose", [by_head], f"{layer}.{name}", perm=order))
    scores = b.op("Add", [b.op("MatMul", turned[:2], f"{layer}.scores"), mask], f"{layer}.scores.masked")
    context = b.op("MatMul", [b.op("Softmax", [scores], f"{layer}.weights", axis=-1), turned[2]], f"{layer}.heads")
    context = b.op("Transpose", [context], f"{layer}.heads.turned", perm=[0, 2, 1, 3])
    context = b.shape(context, f"{layer}.context", batch * length, heads * vo)
    x = b.op("Add", [b.dense(f"{layer}.attention", context), x], f"{layer}.attended")
    x = b.norm(x, f"{layer}.attention_norm", config.epsilon)
    inner = b.gelu(b.dense(f"{layer}.up", x), f"{layer}.gelu")
    x = b.op("Add", [b.dense(f"{layer}.down", inner), x], f"{layer}.fed")
    return b.norm(x, f"{layer}.output_norm", config.epsilon)
