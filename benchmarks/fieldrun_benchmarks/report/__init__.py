"""Reports: records of kind `bench` in, one page that opens offline out; also Markdown, CSV and JSON."""

from __future__ import annotations

__all__: list[str] = []
