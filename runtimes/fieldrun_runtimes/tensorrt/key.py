"""The key of an engine: what must match for it to be valid. TensorRT supports an engine on no other machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from fieldrun.errors import EngineError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.integrity import from_mapping
from fieldrun.formats.storage import sha256_bytes

from .device import Gpu, jetpack, machine_id

__all__ = ["OPTIONS", "EngineKey", "keys_of"]

OPTIONS: Mapping[str, Any] = {"tf32": False, "workspace_mib": 256}
"""The builder's settings: no TF32, whose ten bits are in no recipe; a workspace that fits a small board."""

_OPTIONAL = ("cuda", "device", "jetpack")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What one engine was built from, with and for. `device`, `cuda` and `jetpack` may be None."""

    graph: str
    graph_sha256: str
    weights_sha256: str
    target: str
    tensorrt: str
    cuda: str | None
    compute_capability: str
    device: str | None
    machine: str
    jetpack: str | None
    bucket: str
    options: Mapping[str, Any]

    def builder(self) -> str:
        """Return 12 hexadecimal digits that identify the builder and its GPU: what kernel timings are valid for."""
        names = ("target", "tensorrt", "cuda", "compute_capability", "device", "machine", "jetpack")
        return sha256_bytes(repr([getattr(self, name) for name in names]).encode("utf-8"))[:12]

    @classmethod
    def from_dict(cls, value: Any) -> EngineKey:
        """Read what a sidecar has; `EngineError` for anything else."""
        key: EngineKey = from_mapping(cls, value, "the key of the engine", EngineError)
        texts = [(f.name, getattr(key, f.name)) for f in fields(key) if f.name != "options"]
        wrong = [name for name, text in texts if not isinstance(text, str) and not (name in _OPTIONAL and text is None)]
        if not isinstance(key.options, Mapping) or not all(type(v) in (bool, int) for v in key.options.values()):
            wrong.append("options")
        if wrong:
            raise EngineError(f"the key of the engine has a {wrong[0]} of the wrong type")
        return key

    def differences(self, here: EngineKey) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which `here` differs: name -> (this key's value, the other's)."""
        pairs = {f.name: (getattr(self, f.name), getattr(here, f.name)) for f in fields(self)}
        return {name: (built, now) for name, (built, now) in pairs.items() if built != now}


def keys_of(
    bundle: Bundle, target: str, library: ModuleType, gpu: Gpu | None, capability: str | None = None
) -> dict[str, EngineKey]:
    """Return the key of every TensorRT graph of `bundle`, by file name.

    Args:
        bundle: a loaded bundle, whose files match the hashes in its manifest.
        target: `"tensorrt"` or `"tensorrt-rtx"`.
        library: the target's package.
        gpu: the machine's GPU, or None.
        capability: the compute capability to build for, if it is not the GPU's own.

    Raises:
        EngineError: the bundle has no TensorRT graphs, or neither a GPU nor a capability is given.
    """
    manifest = bundle.manifest
    if manifest.tensorrt is None:
        raise EngineError(
            f"{bundle.path} has no TensorRT graphs (recipe {manifest.recipe['name']!r}); "
            "export with a recipe that has [tensorrt], such as jetson-orin-int8"
        )
    capability = capability or (gpu.compute_capability if gpu is not None else None)
    if capability is None:
        raise EngineError("no GPU to build for was found; name one with --compute-capability, as in 8.6")
    buckets = {b.graph: f"{b.batch}x{b.length}" for b in manifest.tensorrt.buckets}
    buckets |= {name: f"pairs {batch}" for batch, name in manifest.tensorrt.pair_graphs.items()}
    return {
        name: EngineKey(
            graph=name,
            graph_sha256=manifest.files[name].sha256,
            weights_sha256=manifest.files["weights.safetensors"].sha256,
            target=target,
            tensorrt=str(library.__version__),
            cuda=gpu.cuda if gpu is not None else None,
            compute_capability=capability,
            device=gpu.name if gpu is not None else None,
            machine=machine_id(gpu),
            jetpack=jetpack(),
            bucket=bucket,
            options=dict(OPTIONS),
        )
        for name, bucket in buckets.items()
    }
