"""TensorRT and TensorRT-RTX: build engines from a bundle's graphs on the device that runs them, cache and run them.

    bundle's trt-*.onnx --build--> engine + sidecar in the cache --engine--> field and logits

| Module | Does |
|---|---|
| `library` | finds the Python package of a target |
| `device` | the driver, the GPU and JetPack, without a CUDA package |
| `key` | what an engine is valid for |
| `cache` | where engines lie, and what is checked before one is loaded |
| `layers` | the precision of every layer, from the builder's log |
| `build` | graph -> engine, all of a bundle's under one lock |
| `cuda` | device memory, streams and CUDA graphs |
| `engine` | runs engines |

One code path for TensorRT 10.3 to 11.4 and TensorRT-RTX: strongly typed networks, tensors by name, no precision flags.
"""

from __future__ import annotations

__all__: list[str] = []
