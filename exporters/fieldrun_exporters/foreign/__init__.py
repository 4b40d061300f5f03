"""Foreign students: an ONNX file that maps token ids to a field, made into fixed shapes, int8 and a bundle."""

from __future__ import annotations

__all__: list[str] = []
