"""Every setting of a Hugging Face folder that an import knows, file by file, and what becomes of it.

A setting is carried (what it says is in the encoder checkpoint), idle (it cannot change a vector), or has the only
values that fieldrun computes. Another value is refused, and so is a setting that is not in the table: it could change
every vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError
from fieldrun.formats.storage import read_json

__all__ = ["CARRIED", "IDLE", "SETTINGS", "check_settings", "read_object"]

CARRIED = "carried"
IDLE = "idle"
_OFF: tuple[Any, ...] = (None, False)
_NONE: tuple[Any, ...] = (None, [], {}, "")
_BERT = ("BertTokenizer", "BertTokenizerFast")
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


def _idle(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), IDLE)


def _carried(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), CARRIED)


_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_POOLINGS = "cls_token max_tokens mean_tokens mean_sqrt_len_tokens weightedmean_tokens lasttoken"
_SPECIAL = "cls_token sep_token pad_token unk_token mask_token"

SETTINGS: Mapping[str, Mapping[str, str | tuple[Any, ...]]] = {
    "config.json": {
        **_carried("vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings"),
        **_carried("layer_norm_eps id2label label2id"),
        **_idle("intermediate_size type_vocab_size"),  # the tensors have them
        **_idle("hidden_dropout_prob attention_probs_dropout_prob classifier_dropout initializer_range use_cache"),
        **_idle(
            "gradient_checkpointing dtype torch_dtype torchscript use_bfloat16 tf_legacy_loss transformers_version"
        ),
        **_idle("_name_or_path name_or_path _commit_hash _attn_implementation attn_implementation finetuning_task"),
        **_idle("output_hidden_states output_attentions output_past return_dict return_dict_in_generate output_scores"),
        **_idle("tie_word_embeddings tie_encoder_decoder chunk_size_feed_forward cross_attention_hidden_size"),
        **_idle("directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_type"),
        **_idle("pooler_size_per_head bos_token_id eos_token_id sep_token_id decoder_start_token_id prefix"),
        **_idle("task_specific_params do_sample early_stopping max_length min_length num_beams num_beam_groups top_k"),
        **_idle("top_p typical_p temperature repetition_penalty diversity_penalty length_penalty bad_words_ids"),
        **_idle("no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values"),
        **_idle("forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty suppress_tokens"),
        **_idle("begin_suppress_tokens"),
        "model_type": ("bert",),
        "architectures": (None, ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"], ["BertLMHeadModel"]),
        "num_labels": (None, 1, 2),  # the default of an encoder too
        "problem_type": (None,),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute", None),
        "pad_token_id": (0,),
        "is_decoder": _OFF,
        "is_encoder_decoder": _OFF,
        "add_cross_attention": _OFF,
        "is_causal": _OFF,
        "pruned_heads": _NONE,
        "per_layer_config": _NONE,
        "quantization_config": _NONE,
        "tokenizer_class": (*_BERT, None),
        "auto_map": (None,),
    },
    "modules.json": {
        **_carried("type path"),
        **_idle("idx name"),
        "kwargs": _NONE,
    },
    "Pooling": {
        **_carried("pooling_mode include_prompt"),
        **_carried(" ".join(f"pooling_mode_{name}" for name in _POOLINGS.split())),
        **_idle("word_embedding_dimension embedding_dimension"),  # the tensors have it
    },
    "Normalize": {
        "module_input_name": ("sentence_embedding",),
        "module_output_name": ("sentence_embedding", None),
    },
    "sentence_bert_config.json": {
        **_carried("max_seq_length do_lower_case"),
        **_idle("unpad_inputs"),
        "transformer_task": ("feature-extraction",),
        "modality_config": (_TEXT,),
        "module_output_name": ("token_embeddings",),
        "tokenizer_name_or_path": (None,),
        **dict.fromkeys(["processing_kwargs", "query_length", "document_length", "query_expansion"], _NONE),
        **dict.fromkeys(["model_args", "tokenizer_args", "config_args"], _NONE),
        **dict.fromkeys(["model_kwargs", "processor_kwargs", "config_kwargs"], _NONE),
    },
    "config_sentence_transformers.json": {
        **_carried("prompts default_prompt_name"),
        **_idle("__version__ requirements similarity_fn_name"),
        "model_type": ("SentenceTransformer",),
        "truncate_dim": (None,),
    },
    "tokenizer_config.json": {
        **_carried("do_lower_case strip_accents tokenize_chinese_chars model_max_length max_len"),
        **_carried(f"{_SPECIAL} added_tokens_decoder additional_special_tokens extra_special_tokens"),
        **_idle("clean_up_tokenization_spaces max_length stride truncation_strategy pad_to_multiple_of"),
        **_idle("name_or_path special_tokens_map_file tokenizer_file processor_class backend is_local"),
        **_idle("local_files_only use_fast chat_template _commit_hash"),
        "tokenizer_class": (*_BERT, *_GENERIC, None),
        "padding_side": ("right",),
        "truncation_side": ("right",),
        "pad_token_type_id": (0,),
        "do_basic_tokenize": (True,),
        "never_split": _NONE,
        "split_special_tokens": _OFF,
        "model_input_names": (["input_ids", "token_type_ids", "attention_mask"], ["input_ids", "attention_mask"]),
        "auto_map": (None,),
    },
    "special_tokens_map.json": _carried(f"{_SPECIAL} additional_special_tokens extra_special_tokens"),
}
"""File, or kind of a module's `config.json` -> setting -> `CARRIED`, `IDLE`, or the only values that are taken."""

_NEXT: Mapping[str, str] = {
    "architectures": "a head on the encoder is not imported: to import the encoder alone, set architectures to "
    "[\"BertModel\"], and fit a head on its fields with 'fieldrun fit'",
    "truncate_dim": "fields are not cut: set it to null for the whole field",
    "auto_map": "it is a model with its own code, which is not run",
}
_NEXT_OF_HEADS = dict.fromkeys(("num_labels", "problem_type", "id2label", "label2id"), _NEXT["architectures"])
_DEFAULT_NEXT = (
    "take it out if it does not change the vectors, else export the model to ONNX and give that folder to "
    "'fieldrun export'"
)
_LABEL = re.compile(r"LABEL_\d+")


def check_settings(folder: Path, where: str, found: Mapping[str, Any], kind: str | None = None) -> None:
    """Refuse a setting of the file `where` that is not in its table, or whose value is not one of those taken.

    Raises:
        CheckpointError: names the file, the setting, its value and the next step.
    """
    known = SETTINGS[kind or where]
    for name, value in found.items():
        rule = known.get(name)
        taken = any(type(value) is type(each) and value == each for each in rule) if isinstance(rule, tuple) else True
        if name in ("id2label", "label2id") and rule is not None:
            taken = _unnamed(value, name)
        if rule is None or not taken:
            supported = f"; only {rule[0]!r} is supported" if isinstance(rule, tuple) and rule[0] is not None else ""
            unknown = ", a setting that fieldrun does not know" if rule is None else ""
            shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
            following = {**_NEXT, **_NEXT_OF_HEADS}.get(name, _DEFAULT_NEXT)
            raise CheckpointError(f"{folder}: {where} has {name} {shown}{unknown}{supported}. Next: {following}")


def _unnamed(value: Any, name: str) -> bool:
    """Whether labels are those that every config has by default, so that no classifier was trained."""
    if not isinstance(value, dict):
        return value is None
    labels = value.values() if name == "id2label" else value
    return all(isinstance(label, str) and _LABEL.fullmatch(label) for label in labels)


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Return the JSON object in the file `path`; empty without the file if it is `optional`."""
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        if optional:
            return {}
        raise CheckpointError(f"{path.parent} has no {path.name}; give a Hugging Face folder") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path.parent}: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold an object, not {type(value).__name__}; download it again")
    return value
