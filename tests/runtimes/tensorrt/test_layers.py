"""Precisions read from the builder's listings, as TensorRT-RTX and as TensorRT 10 spell them.

The lines of TensorRT 10 are public ones (beside each, where from) with our layers' names and sizes in place of theirs;
what is not ours in them, spelling above all, is as it was published.
"""

from __future__ import annotations

import numpy as np
import pytest

from fieldrun.formats.tensors import Array
from fieldrun_runtimes.tensorrt.layers import fallen_back, layer_precisions, part_shapes, unchecked, wanted_precisions

WEIGHTS: dict[str, Array] = {
    "table": np.zeros((100, 16), np.int8),
    "mixer.weight": np.zeros((32, 24), np.int8),
    "mixer.input_scale": np.ones(1, np.float32),
    "hidden.weight": np.zeros((24, 8), np.int8),
    "hidden.input_scale": np.ones(1, np.float32),
    "output.weight": np.zeros((8, 12), np.float16),
}
SHAPES, WANTED = part_shapes(WEIGHTS), wanted_precisions(WEIGHTS)

RTX_TENSOR = "{{ Name: x, Dimensions: [{0}], Strides: [1], StrideOrder: [0], Datatype: {1}, Format: (L) Row }}"
RTX_LINE = (
    "Name: hidden.product_U1, LayerType: gemm, Inputs: [ {}], Constants: [ {}], Outputs: [ {}], TacticName: t, "
    "StreamId: 0, Metadata: [ONNX Layer: hidden.product]"
)

# github.com/NVIDIA/TensorRT/issues/4397: a kernel whose weight is not listed, and a name of several nodes
UNLISTED = (
    "Name: /encoder/hidden.product+/encoder/hidden.bias_myl0_7, LayerType: gemm, Inputs: [ {{ Name: "
    "/encoder/layers_0/pos_ff/output/Add_output_0'.1_11, Dimensions: [1,40,24], Format/Datatype: {0} }}], Outputs: [ "
    "{{ Name: __myln_k_arg__bb1_12, Dimensions: [1,40,8], Format/Datatype: Half }}], TacticName: "
    "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16, StreamId: 0, "
    "Metadata: [ONNX Layer: hidden.product][ONNX Layer: hidden.bias]"
)

# a published walk-through of trtexec with alexnet, November 2024: the weight is among the inputs, scalars after it
LISTED = (
    "Name: /classifier/classifier_6/Gemm_myl9_4, LayerType: gemm, Inputs: [ {{ Name: output'.1_4, Dimensions: [1,8], "
    "Format/Datatype: Half }}, {{ Name: __mye595_dconst, Dimensions: [8,12], Format/Datatype: {0} }}, {{ Name: "
    "__mye574/classifier/classifier_6/Gemm_alpha, Dimensions: [1], Format/Datatype: Float }}, {{ Name: "
    "classifier_6_bias _ ONNXTRT_Broadcast_6_constantHalf, Dimensions: [1,12], Format/Datatype: Float }}], Outputs: [ "
    "{{ Name: output, Dimensions: [1,12], Format/Datatype: Half }}], TacticName: "
    "sm50_xmma_cublas_gemvx_f16f16_f32_f32_tn_n_int32_unit_n_launch_param4x32x32_strided_unit_stride, StreamId: 0, "
    "Metadata: [ONNX Layer: output.product]"
)

# github.com/NVIDIA/TensorRT/issues/4020 and 3737: sentences for formats, the weight's type apart, spaces in the name
CASK = (
    "Name: mixer.product + mixer.relu || PWN(PWN(x), y), LayerType: CaskConvolution, Inputs: [ {{ Name: Reformatted "
    "Input Tensor 0 to mixer.product, Location: Device, Dimensions: [1,32,56,1], Format/Datatype: {0} }}], Outputs: [ "
    "{{ Name: y, Location: Device, Dimensions: [1,24,56,1], Format/Datatype: {0} }}], ParameterType: Convolution, "
    'Kernel: [1,1], PaddingMode: kEXPLICIT_ROUND_DOWN, OutMaps: 24, Groups: 1, Weights: {{"Type": "{1}", '
    '"Count": 768}}, Bias: {{"Type": "Float", "Count": 24}}, HasBias: 1, TacticName: sm80_xmma_fprop, TacticValue: '
    "0x280b0ad3c23d8442, StreamId: 0, Metadata: [ONNX Layer: mixer.product][ONNX Layer: mixer.relu]"
)
VECTORIZED = "Thirty-two wide channel vectorized row major Int8 format"


def rtx(left: str, weight: str) -> str:
    tensors = (("16,24", left), ("24,8", weight), ("16,8", "Float"))
    return RTX_LINE.format(*(RTX_TENSOR.format(*tensor) for tensor in tensors))


@pytest.mark.parametrize(
    ("line", "found", "falls"),
    [
        (rtx("Int8", "Int8"), {"hidden": "int8"}, False),
        (rtx("Float", "Int8"), {"hidden": "int8-weights"}, False),
        (rtx("Float", "Float"), {"hidden": "fp32"}, True),
        (rtx("Float", "BFloat16"), {"hidden": "unknown"}, False),
        (UNLISTED.format("Int8"), {"hidden": "int8"}, False),
        (UNLISTED.format("Row major Int8 format"), {"hidden": "int8"}, False),
        (UNLISTED.format("Half"), {"hidden": "unknown"}, False),
        (LISTED.format("Half"), {"output": "fp16"}, False),
        (LISTED.format("Float"), {"output": "fp32"}, True),
        (LISTED.format("Row major linear FP32"), {"output": "fp32"}, True),
        (CASK.format(VECTORIZED, "Int8"), {"mixer": "int8"}, False),
        (CASK.format("Row major Int8 format", "Int8"), {"mixer": "int8"}, False),
        (CASK.format("Row major linear FP32", "Float"), {"mixer": "fp32"}, True),
        (CASK.format("Sixteen wide channel vectorized row major FP16 format", "Half"), {"mixer": "fp16"}, True),
        (CASK.format("a format of tomorrow", "NVF4"), {"mixer": "unknown"}, False),
        ("Name: x, LayerType: gemm, Inputs: [], Outputs: [], Metadata: [ONNX Layer: hidden.product]", {}, False),
        ("Layers:", {}, False),
    ],
)
def test_a_line_says_what_its_product_is_computed_in(line: str, found: dict[str, str], falls: bool) -> None:
    assert layer_precisions(["Layers:", line], SHAPES) == found
    lines = fallen_back(found, WANTED)
    assert len(lines) == falls
    if falls:
        ((part, kind),) = found.items()
        assert lines == [f"{part} is {WANTED[part]} in the bundle and {kind} in the engine"]
    open_parts = unchecked(found, WANTED)
    assert open_parts == [part for part in WANTED if part not in found or found[part] == "unknown"]


@pytest.mark.parametrize("spelling", ["Int8", "Row major Int8 format", "Half", "Float"])
def test_the_table_is_the_input_that_rows_come_from(spelling: str) -> None:
    line = (
        "Name: __myl_Gath_myl0_0, LayerType: kgen, Inputs: [ { Name: table, Dimensions: [100,16], Format/Datatype: "
        f"{spelling} }}, {{ Name: ids, Dimensions: [1,8], Format/Datatype: Int32 }}], Outputs: [ {{ Name: y, "
        "Dimensions: [8,16], Format/Datatype: Float }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: values]"
    )
    kind = {"Half": "fp16", "Float": "fp32"}.get(spelling, "int8")
    found = layer_precisions([line], SHAPES)
    assert found == {"table": kind}
    assert bool(fallen_back(found, WANTED)) == (kind != "int8")


def test_a_kernel_without_the_weight_does_not_hide_one_that_has_it() -> None:
    product, after = rtx("Int8", "Int8"), UNLISTED.format("Half").replace("LayerType: gemm", "LayerType: kgen")
    for lines in ((product, after), (after, product)):
        assert layer_precisions(lines, SHAPES) == {"hidden": "int8"}
