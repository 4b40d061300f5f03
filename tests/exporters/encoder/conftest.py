"""The tiny BERT on disk: as a Hugging Face folder, and as an encoder checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldrun_exporters.encoder.importing import load_encoder
from tests.tiny_bert import write_bert


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="session")
def encoder_folder(bert_folder: Path) -> Path:
    """The encoder checkpoint of the tiny BERT; treat it as read-only."""
    path = bert_folder.parent / "encoder"
    load_encoder(bert_folder).save(path)
    return path
