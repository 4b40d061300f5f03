"""Import an encoder: a Hugging Face folder of the BERT family becomes an encoder checkpoint for `fieldrun.export`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError, OutputExists
from fieldrun.formats.storage import is_folder

from .huggingface import hashes_of, read_licence, read_settings, read_weights, source_hashes
from .model import Encoder, EncoderConfig
from .sentence import read_sentence
from .tokenization import longest_text, read_tokenizer

__all__ = ["ImportReport", "import_encoder", "load_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was imported, and where the encoder checkpoint is.

    `prompt` is what the tokenizer now writes before every text, `prompts` are all that the folder has, by name.
    """

    path: Path
    name: str
    parameters: int
    layers: int
    field_dim: int
    max_tokens: int
    pooling: str
    normalize: bool
    licence: str
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"path": str(self.path)}


def import_encoder(
    folder: str | Path, out: str | Path, *, pooling: str | None = None, normalize: bool | None = None
) -> ImportReport:
    """Import the encoder in a local Hugging Face folder to the new folder `out`, which `fieldrun.export` takes.

    Nothing is downloaded or unpickled, and no code of the folder is run. Every setting of the folder's files is carried
    so that a field is the vector that sentence-transformers' `encode` gives, or is refused by name. A default prompt
    becomes part of the tokenizer; texts are cut where the original cuts them.

    Args:
        folder: with `config.json`, safetensors weights and `tokenizer.json`, of the BERT family, and what
            sentence-transformers has beside them.
        out: must not exist.
        pooling: `"mean"` or `"cls"`; as `1_Pooling/config.json` says when None, and the mean without that file.
        normalize: whether the field has length 1; as `modules.json` says when None.

    Raises:
        CheckpointError: the folder is not of this kind, or has a setting or a tensor that is not carried.
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
        prompt=encoder.provenance.get("prompt", ""),
        prompts=encoder.provenance.get("prompts", {}),
    )


def load_encoder(folder: str | Path, *, pooling: str | None = None, normalize: bool | None = None) -> Encoder:
    """Read the encoder in a Hugging Face folder; arguments and errors as of `import_encoder`."""
    folder = Path(folder)
    if not is_folder(folder):
        raise CheckpointError(f"no folder {folder}: give a local Hugging Face folder with config.json")
    settings = read_settings(folder)
    sentence = read_sentence(folder)
    hashes = source_hashes(folder, sentence)
    tensors, positions = read_weights(folder, settings["layers"]), settings["max_positions"]
    tokenizer = read_tokenizer(folder, sentence, pad_id=0)
    settings["max_positions"] = longest_text(folder, sentence, positions)
    if len(tensors.get("embeddings.position", ())) == positions:  # `validate` refuses another number
        tensors["embeddings.position"] = tensors["embeddings.position"][: settings["max_positions"]]
    provenance: dict[str, Any] = {"source": {"name": folder.resolve().name, "sha256": hashes}}
    if any(sentence.prompts.values()):
        provenance |= {"prompt": sentence.prompt, "prompts": dict(sentence.prompts)}
    encoder = Encoder(
        config=EncoderConfig(
            name=folder.resolve().name,
            pooling=pooling or sentence.pooling,
            normalize=sentence.normalize if normalize is None else normalize,
            scale=float((settings["hidden"] // settings["heads"]) ** -0.5),
            **settings,
        ),
        tensors=tensors,
        tokenizer=tokenizer,
        licence=read_licence(folder),
        provenance=provenance,
    )
    encoder.validate()
    hashes_of(folder, hashes, hashes)
    return encoder
