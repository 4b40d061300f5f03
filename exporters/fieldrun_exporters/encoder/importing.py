"""Import an encoder: a Hugging Face folder of the BERT family becomes an encoder checkpoint for `fieldrun.export`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError, OutputExists
from fieldrun.formats.storage import is_folder

from .huggingface import hashes_of, read_licence, read_pooling, read_settings, read_weights, source_hashes
from .model import Encoder, EncoderConfig

__all__ = ["ImportReport", "import_encoder", "load_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was imported, and where the encoder checkpoint is."""

    path: Path
    name: str
    parameters: int
    layers: int
    field_dim: int
    max_tokens: int
    pooling: str
    normalize: bool
    licence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"path": str(self.path)}


def import_encoder(
    folder: str | Path, out: str | Path, *, pooling: str | None = None, normalize: bool | None = None
) -> ImportReport:
    """Import the encoder in a local Hugging Face folder to the new folder `out`, which `fieldrun.export` takes.

    Nothing is downloaded or unpickled, and no code of the folder is run.

    Args:
        folder: with `config.json`, safetensors weights and `tokenizer.json`, of the BERT family.
        out: must not exist.
        pooling: `"mean"` or `"cls"`; as `1_Pooling/config.json` says when None, and the mean without that file.
        normalize: whether the field has length 1; as `modules.json` says when None.

    Raises:
        CheckpointError: the folder is not of this kind, or has a setting or a tensor that is not BERT's.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    encoder = load_encoder(folder, pooling=pooling, normalize=normalize)
    encoder.save(out)
    config = encoder.config
    return ImportReport(
        path=out,
        name=config.name,
        parameters=encoder.parameters(),
        layers=config.layers,
        field_dim=config.hidden,
        max_tokens=config.max_positions,
        pooling=config.pooling,
        normalize=config.normalize,
        licence=encoder.licence,
    )


def load_encoder(folder: str | Path, *, pooling: str | None = None, normalize: bool | None = None) -> Encoder:
    """Read the encoder in a Hugging Face folder; arguments and errors as of `import_encoder`."""
    folder = Path(folder)
    if not is_folder(folder):
        raise CheckpointError(f"no folder {folder}: give a local Hugging Face folder with config.json")
    settings = read_settings(folder)
    hashes = source_hashes(folder)
    said_pooling, said_normalize = read_pooling(folder)
    try:
        tokenizer = (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no tokenizer.json that can be read; save it with the 'tokenizers' library"
        ) from error
    encoder = Encoder(
        config=EncoderConfig(
            name=folder.resolve().name,
            pooling=pooling or said_pooling,
            normalize=said_normalize if normalize is None else normalize,
            scale=float((settings["hidden"] // settings["heads"]) ** -0.5),
            **settings,
        ),
        tensors=read_weights(folder, settings["layers"]),
        tokenizer=tokenizer,
        licence=read_licence(folder),
        provenance={"source": {"name": folder.resolve().name, "sha256": hashes}},
    )
    encoder.validate()
    hashes_of(folder, hashes, hashes)
    return encoder
