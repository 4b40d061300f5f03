"""Every setting of a folder that could change a vector is carried as sentence-transformers does it, or refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertTokenizer

import fieldrun
from fieldrun.errors import CheckpointError
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.importing import import_encoder, load_encoder
from fieldrun_exporters.encoder.model import Encoder, forward
from fieldrun_exporters.encoder.settings import CARRIED, IDLE, SETTINGS
from fieldrun_runtimes.tokenization import TextTokenizer
from tests.tiny_bert import CONFIG, bert_weights, write_bert
from tests.toy import toy_tokenizer

TEXTS = [
    "a good film",
    "A GOOD Film, not bad!",
    "caf\u00e9 na\u00efve \u00c5",
    "[SEP] good [CLS] [PAD",
    "\u4e2d\u6587 good",
    "good " * 20,
    "how do i transfer cash to the card " * 3,
    "x",
]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
FILES: Mapping[str, Any] = {"modules.json": MODULES, "1_Pooling/config.json": MEAN}
PLACES = {"Pooling": "1_Pooling/config.json", "Normalize": "2_Normalize/config.json"}


def write(folder: Path, files: Mapping[str, Any], **config: Any) -> Path:
    """Write the tiny BERT as sentence-transformers has it, with other `files` of JSON; None takes one away."""
    write_bert(folder, **config)
    for name, value in {**FILES, **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if value is not None:
            (folder / name).write_text(json.dumps(value), "utf-8")
    return folder


def original(folder: Path) -> Array:
    """What sentence-transformers gives for `TEXTS`, each alone."""
    peer = pytest.importorskip("sentence_transformers")
    model = peer.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.stack([model.encode(text, show_progress_bar=False) for text in TEXTS])


def imported(encoder: Encoder) -> Array:
    """The fields of `TEXTS`, each alone, with the tokenizer of a bundle, cut where the encoder says."""
    tokenize = TextTokenizer(encoder.tokenizer, encoder.config.max_positions, "truncate")
    return np.concatenate([forward(encoder, pad_ids(tokenize([text]).ids)) for text in TEXTS])


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    value = json.loads(toy_tokenizer().to_str())
    for name, change in changes.items():
        value[name] = value[name] | change if isinstance(change, dict) else change
    return dict(value)


PROMPTS = {"prompts": {"query": "find good: ", "document": ""}, "default_prompt_name": "query"}
BROKEN_CASE = tokenizer_json(normalizer={"lowercase": False})
TOKEN = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False) | {"special": True}
CUT = {"strategy": "LongestFirst", "max_length": 9, "stride": 0}
ADDED = [{"id": 2, "content": "[CLS]", **TOKEN}]

CARRY: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "max_seq_length": {"sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False}},
    "max_seq_length of another name": {"sentence_roberta_config.json": {"max_seq_length": 12}},
    "model_max_length": {"tokenizer_config.json": {"model_max_length": 9}},
    "do_lower_case of the module": {
        "sentence_bert_config.json": {"do_lower_case": True},
        "tokenizer.json": BROKEN_CASE,
        "tokenizer_config.json": {"do_lower_case": False},
    },
    "do_lower_case off": {"tokenizer_config.json": {"do_lower_case": False}},
    "do_lower_case on": {"tokenizer_config.json": {"do_lower_case": True}, "tokenizer.json": BROKEN_CASE},
    "strip_accents": {"tokenizer_config.json": {"strip_accents": False}},
    "tokenize_chinese_chars": {"tokenizer_config.json": {"tokenize_chinese_chars": False}},
    "a tokenizer of its own": {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"},
        "tokenizer.json": tokenizer_json(
            normalizer={"lowercase": False}, added_tokens=[{"id": 0, "content": "[PAD]", **TOKEN}]
        ),
    },
    "special tokens": {
        "tokenizer.json": tokenizer_json(added_tokens=ADDED),
        "tokenizer_config.json": {"cls_token": "[CLS]", "added_tokens_decoder": {"2": {"content": "[CLS]", **TOKEN}}},
        "special_tokens_map.json": {"sep_token": {"content": "[SEP]"}, "additional_special_tokens": ["[CLS]"]},
    },
    "prompts": {"config_sentence_transformers.json": PROMPTS},
    "prompts and max_seq_length": {
        "config_sentence_transformers.json": PROMPTS,
        "sentence_bert_config.json": {"max_seq_length": 12},
    },
    "a prompt that is not the default": {
        "config_sentence_transformers.json": PROMPTS | {"default_prompt_name": None},
        "1_Pooling/config.json": MEAN | {"include_prompt": False},
    },
    "an empty prompt": {"config_sentence_transformers.json": PROMPTS | {"default_prompt_name": "document"}},
    "cls": {"1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "cls"}},
    "the newer of two": {"1_Pooling/config.json": MEAN | {"pooling_mode": ["cls"]}},
    "no way of pooling": {"1_Pooling/config.json": {"word_embedding_dimension": 32}},
    "no way is on": {"1_Pooling/config.json": MEAN | {"pooling_mode_mean_tokens": False}},
    "normalize": {
        "modules.json": [*MODULES, NORMALIZE],
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding", "module_output_name": None},
    },
    "a saved model of version 6": {
        "modules.json": [
            MODULES[0] | {"type": "sentence_transformers.base.modules.transformer.Transformer"},
            MODULES[1] | {"type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    },
    "no modules": {"modules.json": None, "1_Pooling/config.json": None},
}


@pytest.mark.parametrize("case", CARRY)
def test_what_is_carried_gives_the_vectors_of_the_original(case: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "bert", CARRY[case])
    want, encoder = original(folder), load_encoder(folder)
    assert np.abs(imported(encoder) - want).max() < 2e-5
    for name in CARRY[case]:
        assert CARRY[case][name] is None or name in encoder.provenance["source"]["sha256"]


@pytest.mark.parametrize(
    "case",
    ["max_seq_length", "model_max_length", "do_lower_case off", "strip_accents", "prompts", "cls", "normalize"],
)
def test_the_texts_tell_a_setting_that_was_overlooked(case: str, tmp_path: Path) -> None:
    plain = load_encoder(write(tmp_path / "plain", {}))
    assert np.abs(imported(plain) - original(write(tmp_path / "bert", CARRY[case]))).max() > 0.1


def test_an_exported_bundle_has_the_prompt_and_cuts_as_the_original(
    tmp_path: Path, texts: list[str], encoder_recipe: Any
) -> None:
    folder = write(
        tmp_path / "bert",
        {"config_sentence_transformers.json": PROMPTS, "sentence_bert_config.json": {"max_seq_length": 30}},
    )
    report = import_encoder(folder, tmp_path / "encoder")
    assert (report.prompt, report.max_tokens, report.prompts) == ("find good: ", 30, PROMPTS["prompts"])
    recipe, short = (encoder_recipe("fp32", lengths=lengths) for lengths in ([16, 32], [16, 28]))
    bundle = fieldrun.export(tmp_path / "encoder", tmp_path / "bundle", recipe=recipe, calibration=texts)
    assert "the longest bucket has 30 and not 32" in bundle.warnings[0]
    with fieldrun.load(tmp_path / "bundle") as model:
        assert np.abs(model.field(TEXTS) - original(folder)).max() < 2e-5
    other = fieldrun.export(tmp_path / "encoder", tmp_path / "short", recipe=short, calibration=texts)
    assert "cut at 28 tokens, the longest bucket; the original cuts them at 30" in other.warnings[0]


ODD: Mapping[str, Mapping[str, Any]] = {
    "config.json": {
        "hidden_dropout_prob": 0.5,
        "attention_probs_dropout_prob": 0.5,
        "classifier_dropout": 0.5,
        "initializer_range": 9.0,
        "use_cache": False,
        "chunk_size_feed_forward": 1,
        "tie_word_embeddings": False,
        "output_attentions": True,
        "output_hidden_states": True,
        "bos_token_id": 3,
        "eos_token_id": 5,
        "sep_token_id": 7,
        "directionality": "left",
        "pooler_fc_size": 9,
        "gradient_checkpointing": True,
        "prefix": "good",
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "finetuning_task": "none",
        "transformers_version": "4.0.0",
        "temperature": 9.0,
        "max_length": 5,
    },
    "tokenizer_config.json": {
        "clean_up_tokenization_spaces": True,
        "max_length": 5,
        "stride": 2,
        "truncation_strategy": "only_first",
        "pad_to_multiple_of": 8,
        "processor_class": "None",
        "name_or_path": "another",
        "use_fast": False,
    },
    "config_sentence_transformers.json": {"similarity_fn_name": "dot", "__version__": {"pytorch": "1"}},
    "sentence_bert_config.json": {"unpad_inputs": False},
    "Pooling": {"word_embedding_dimension": 32},
}


@pytest.mark.parametrize("file", ODD)
def test_what_is_idle_changes_nothing(file: str, tmp_path: Path) -> None:
    kept = {name for name, rule in SETTINGS[file].items() if rule == IDLE or name in ("id2label", "label2id")}
    assert set(ODD[file]) <= kept
    where = PLACES.get(file, file)
    files = {} if file == "config.json" else {where: {**FILES.get(where, {}), **ODD[file]}}
    folder = write(tmp_path / "odd", files, **(ODD[file] if file == "config.json" else {}))
    plain = original(write(tmp_path / "plain", {}))
    assert np.abs(original(folder) - plain).max() < 2e-5
    assert np.abs(imported(load_encoder(folder)) - plain).max() < 2e-5


def limited() -> Iterator[tuple[str, str]]:
    """Every setting that has only some values, and an unknown one, of every file."""
    for file, settings in SETTINGS.items():
        yield from ((file, name) for name, rule in settings.items() if isinstance(rule, tuple))
        yield file, "a_setting_of_tomorrow"


@pytest.mark.parametrize(("file", "name"), list(limited()))
def test_every_other_value_and_every_unknown_setting_is_refused_by_name(file: str, name: str, tmp_path: Path) -> None:
    value, where = {"of": "tomorrow"}, PLACES.get(file, file)
    files: dict[str, Any] = {file: [MODULES[0] | {name: value}, MODULES[1]]}
    if file != "modules.json":
        files = {where: {**FILES.get(where, {}), name: value}}
    if file == "Normalize":
        files["modules.json"] = [*MODULES, NORMALIZE]
    folder = write(tmp_path / "bert", {} if file == "config.json" else files)
    if file == "config.json":
        write_bert(folder, None, **{name: value})
    with pytest.raises(CheckpointError, match=rf"{where} has {name} .*tomorrow.*Next: ") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def test_the_table_has_every_setting_that_the_libraries_have() -> None:
    """A version of them that reads one more setting fails here."""
    peer, kinds = (pytest.importorskip(f"sentence_transformers{name}") for name in ("", ".models"))
    modules = {"self", "backend", "model_name_or_path"}
    theirs = {
        "config.json": set(BertConfig().to_dict()),
        "sentence_bert_config.json": {*inspect.signature(kinds.Transformer.__init__).parameters} - modules,
        "Pooling": {*kinds.Pooling.config_keys, *kinds.Pooling.config_key_renames},
        "Normalize": {*kinds.Normalize.config_keys},
        "tokenizer_config.json": {*inspect.signature(BertTokenizer.__init__).parameters} - {"self", "vocab", "kwargs"},
        "config_sentence_transformers.json": {
            *peer.SentenceTransformer(modules=[kinds.Normalize()])._get_model_config()
        },
    }
    for file, names in theirs.items():
        assert names - set(SETTINGS[file]) == set(), file


def names_in(value: Any) -> set[str]:
    """Every key of a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(names_in, inner))


def test_every_carried_setting_has_a_case() -> None:
    tried = names_in([FILES, *CARRY.values(), *[files for files, _ in REFUSED], ODD, dict(CONFIG), MODULES])
    carried = {name for settings in SETTINGS.values() for name, rule in settings.items() if rule == CARRIED}
    assert carried - tried == set()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"config_sentence_transformers.json": PROMPTS | {"default_prompt_name": "title"}}, "default_prompt_name 'ti"),
    ({"config_sentence_transformers.json": {"prompts": {"q": 1}}}, "must have prompts, an object of texts"),
    (
        {
            "config_sentence_transformers.json": PROMPTS,
            "1_Pooling/config.json": MEAN | {"include_prompt": False},
        },
        "include_prompt False, which leaves the prompt 'find good: ' out",
    ),
    (
        {"config_sentence_transformers.json": {"prompts": {"q": "find"}, "default_prompt_name": "q"}},
        "default prompt 'find'; only one that ends with a blank",
    ),
    ({"modules.json": None}, r"1_Pooling/config\.json but no modules\.json"),
    ({"1_Pooling/config.json": None}, r"1_Pooling has no config\.json"),
    ({"modules.json": [MODULES[0] | {"path": "0_BERT"}, MODULES[1]]}, "the Transformer in '0_BERT'"),
    ({"modules.json": [MODULES[0] | {"type": "my.Transformer"}, MODULES[1]]}, r"has my\.Transformer, Pooling"),
    ({"modules.json": [*MODULES, NORMALIZE, NORMALIZE | {"type": "sentence_transformers.Dense"}]}, "Dense"),
    ({"tokenizer_config.json": {"max_len": 1}}, "model_max_length, 3 tokens or more, not 1"),
    ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "pools by max_tokens"),
    ({"1_Pooling/config.json": {"pooling_mode_mean_sqrt_len_tokens": True}}, "pools by mean_sqrt_len_tokens"),
    ({"1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}}, "pools by weightedmean_tokens"),
    ({"modules.json": [MODULES[0], NORMALIZE]}, "has Transformer, Normalize"),
    ({"1_Pooling/config.json": MEAN | {"pooling_mode": ["mean", "max"]}}, "pools by mean and max"),
    ({"1_Pooling/config.json": MEAN | {"pooling_mode_lasttoken": True}}, "pools by mean_tokens and lasttoken"),
    ({"sentence_bert_config.json": {"max_seq_length": "128"}}, "max_seq_length, 3 tokens or more, not '128'"),
    ({"sentence_bert_config.json": {"do_lower_case": 1}}, "do_lower_case true or false, not 1"),
    ({"tokenizer_config.json": {"model_max_length": "long"}}, "model_max_length, 3 tokens or more"),
    ({"tokenizer_config.json": {"do_lower_case": "no"}}, "do_lower_case true or false, not 'no'"),
    ({"tokenizer.json": BROKEN_CASE}, "lowercase false, but tokenizer_config.json has no do_lower_case"),
    ({"tokenizer.json": tokenizer_json(pre_tokenizer={"type": "Whitespace"})}, "pre_tokenizer 'Whitespace'"),
    ({"tokenizer.json": tokenizer_json(normalizer=None)}, "normalizer None"),
    ({"tokenizer.json": tokenizer_json(model={"max_input_chars_per_word": 9})}, "max_input_chars_per_word 9"),
    ({"tokenizer.json": tokenizer_json(post_processor=None)}, "post_processor 'another one"),
    ({"tokenizer.json": tokenizer_json() | {"truncation": {"direction": "Left", **CUT}}}, "truncation on the left"),
    ({"tokenizer_config.json": {"mask_token": "<mask>"}}, r"added token '<mask>', which tokenizer\.json has not"),
    ({"tokenizer_config.json": {"extra_special_tokens": {"image": "<i>"}}}, "added token '<i>'"),
    ({"special_tokens_map.json": {"additional_special_tokens": ["<e>"]}}, r"special_tokens_map.* token '<e>'"),
    ({"added_tokens.json": {"<e>": 7}}, r"added_tokens\.json has the added token '<e>'"),
    (
        {
            "tokenizer.json": tokenizer_json(added_tokens=ADDED),
            "tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "[CLS]", **TOKEN, "lstrip": True}}},
        },
        "has with another lstrip",
    ),
    ({"tokenizer_config.json": {"pad_token": "[UNK]"}}, r"'\[UNK\]' is not token 0"),
    ({"adapter_config.json": {}}, "an adapter is not applied"),
    ({"config_setfit.json": {}}, "SetFit's head is a pickle"),
    ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "model_type 'CrossEncoder'"),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_what_cannot_be_carried_is_refused(files: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(write(tmp_path / "bert", files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertForSequenceClassification"]},
        {"id2label": {"0": "bad", "1": "good"}},
        {"label2id": {"bad": 0, "good": 1}},
        {"num_labels": 3},
        {"problem_type": "regression"},
    ],
)
def test_a_head_is_not_left_out_in_silence(config: dict[str, Any], tmp_path: Path) -> None:
    (name,) = config
    with pytest.raises(CheckpointError, match=rf"config\.json has {name} .*fieldrun fit"):
        load_encoder(write(tmp_path / "bert", {}, **config))
    weights = bert_weights() | {"classifier.weight": np.zeros((2, 32), np.float32)}
    with pytest.raises(CheckpointError, match=r"classifier\.weight.*fieldrun fit"):
        load_encoder(write_bert(tmp_path / "bert", weights))


@pytest.mark.parametrize("case", ["max_seq_length", "prompts", "do_lower_case off"])
def test_a_foreign_graph_of_the_same_folder_carries_the_same(case: str, tmp_path: Path) -> None:
    from fieldrun_exporters.foreign.read import read_foreign
    from tests.exporters.foreign.test_foreign import save

    folder = write(save(tmp_path / "bert"), CARRY[case])
    model, encoder = read_foreign(folder), load_encoder(folder)
    assert model.tokenizer == encoder.tokenizer
    assert model.max_tokens == (12 if case == "max_seq_length" else None)
