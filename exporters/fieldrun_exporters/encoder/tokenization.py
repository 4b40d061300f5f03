"""Make the `tokenizer.json` that gives the ids which transformers gives with all files of a folder.

transformers takes some settings from `tokenizer_config.json` and `special_tokens_map.json`, and where they differ from
`tokenizer.json`, they win. The device has `tokenizer.json` alone: what they say is written into it, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fieldrun.errors import CheckpointError

from ..calibrate import largest_id, open_tokenizer
from .sentence import Sentence
from .settings import check_settings, read_object

__all__ = ["TOKENIZER_FILES", "longest_text", "read_tokenizer", "with_sentence"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files that `read_tokenizer` reads."""

_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_CASE = {  # of tokenizer_config.json -> of BertNormalizer, and what transformers takes without a statement
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
_WORDS = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_FILE = "tokenizer_config.json"


def longest_text(folder: Path, sentence: Sentence, positions: int) -> int:
    """Return where the original cuts a text, in tokens with the special ones: at most `positions`."""
    longest, config = sentence.max_tokens, read_object(folder / _FILE, optional=True)
    if longest is None:
        longest = config.get("model_max_length", config.get("max_len", positions))
    if not isinstance(longest, int | float) or not longest >= 3:
        raise CheckpointError(f"{folder}: {_FILE} must have model_max_length, 3 tokens or more, not {longest!r}")
    return int(min(positions, longest))


def read_tokenizer(folder: Path, sentence: Sentence, *, pad_id: int | None = None) -> bytes:
    """Return a `tokenizer.json` with everything that the tokenizer's files and `sentence` say.

    It is the folder's own, byte for byte, where that says it all. With a `pad_id`, the token that pads must be that.

    Raises:
        CheckpointError: a file is missing or no tokenizer, or has a setting that cannot be carried.
    """
    try:
        stored = (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no tokenizer.json that can be read; save it with the 'tokenizers' library"
        ) from error
    largest_id(stored)
    open_tokenizer(stored)
    value = json.loads(stored)
    config, named = (read_object(folder / name, optional=True) for name in (_FILE, "special_tokens_map.json"))
    for name, found in ((_FILE, config), ("special_tokens_map.json", named)):
        check_settings(folder, name, found)
    for part in ("truncation", "padding"):
        if (value.get(part) or {}).get("direction", "Right") != "Right":
            raise CheckpointError(f"{folder}: tokenizer.json has {part} on the left; only the right is supported")
    kind = config.get("tokenizer_class") or read_object(folder / "config.json").get("tokenizer_class")
    special = {name: _content(config.get(name) or named.get(name)) or text for name, text in _SPECIAL.items()}
    if kind is None or kind.startswith("Bert"):
        _as_bert(folder, value, config, special)
    _check_added(folder, value, config, named)
    made = stored if value == json.loads(stored) else _written(value)
    if pad_id is not None and open_tokenizer(made).token_to_id(special["pad_token"]) != pad_id:
        raise CheckpointError(
            f"{folder}: the padding token {special['pad_token']!r} is not token {pad_id} of tokenizer.json; export the "
            "model to ONNX and give that folder to 'fieldrun export'"
        )
    return with_sentence(folder, made, sentence)


def with_sentence(folder: Path, stored: bytes, sentence: Sentence) -> bytes:
    """Return the `tokenizer.json` `stored` with the lower case and the prompt of `sentence`.

    Raises:
        CheckpointError: the tokens of the prompt depend on the text that follows.
    """
    if sentence.lower:
        value = json.loads(stored)
        value["normalizer"] = _lowered(value.get("normalizer"))
        stored = _written(value)
    return _with_prompt(folder, stored, sentence.prompt) if sentence.prompt else stored


def _written(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def _whole(stored: bytes) -> Tokenizer:
    """Return the tokenizer without the cutting and the padding that its file may ask for."""
    tokenizer = open_tokenizer(stored)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _content(token: Any) -> str:
    """Return the text of a special token, which is stated as a text or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _as_bert(folder: Path, value: dict[str, Any], config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Change `value`, the JSON of a tokenizer, to what transformers' `BertTokenizer` makes of it."""
    normalizer, model = value.get("normalizer") or {}, value["model"]
    if normalizer.get("type") != "BertNormalizer" or normalizer.get("clean_text") is not True:
        raise _differs(folder, "normalizer", normalizer.get("type"))
    if value.get("pre_tokenizer") != {"type": "BertPreTokenizer"}:
        raise _differs(folder, "pre_tokenizer", (value.get("pre_tokenizer") or {}).get("type"))
    for name, wanted in {**_WORDS, "unk_token": special["unk_token"]}.items():
        if model.get(name, _WORDS.get(name)) != wanted:
            raise _differs(folder, f"model.{name}", model.get(name))
    for setting, (ours, default) in _CASE.items():
        wanted, found = config.get(setting, default), normalizer.get(ours)
        if wanted is not None and not isinstance(wanted, bool):
            raise CheckpointError(f"{folder}: {_FILE} must have {setting} true or false, not {wanted!r}")
        if found != wanted and setting not in config:
            raise CheckpointError(
                f"{folder}: tokenizer.json has {ours} {json.dumps(found)}, but {_FILE} has no {setting}, which "
                f"transformers takes as {json.dumps(wanted)}; state {setting} in {_FILE}"
            )
        normalizer[ours] = wanted
    added, vocab = value.setdefault("added_tokens", []), model["vocab"]
    contents = [token["content"] for token in added]
    for text in special.values():  # transformers adds what the file lacks
        if text in vocab and text not in contents:
            flags = dict.fromkeys(_FLAGS, False) | {"special": True}
            added.append({"id": vocab[text], "content": text, **flags})
    ids = [vocab.get(special[name]) for name in ("cls_token", "sep_token")]
    if _whole(_written(value)).encode("").ids != ids:
        raise _differs(folder, "post_processor", "another one than [CLS] text [SEP]")


def _differs(folder: Path, part: str, found: Any) -> CheckpointError:
    return CheckpointError(
        f"{folder}: tokenizer.json has {part} {found!r}, which transformers replaces for a BertTokenizer. Next: set "
        f"tokenizer_class to PreTrainedTokenizerFast in {_FILE} if tokenizer.json is right, else save the tokenizer "
        "again with transformers"
    )


def _check_added(folder: Path, value: Mapping[str, Any], config: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Refuse tokens that the other files add to those of `tokenizer.json`, or state otherwise."""
    known = {token["content"]: token for token in value.get("added_tokens") or ()}
    stated: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, token in (config.get("added_tokens_decoder") or {}).items():
        stated.append((_FILE, _content(token), {"id": int(key), **token}))
    for name, found in ((_FILE, config), ("special_tokens_map.json", named)):
        stated += [(name, _content(found[key]), {}) for key in _SPECIAL if found.get(key)]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = found.get(key) or ()
            more = list(more.values()) if isinstance(more, dict) else more
            stated += [(name, _content(token), token if isinstance(token, dict) else {}) for token in more]
    for text, number in read_object(folder / "added_tokens.json", optional=True).items():
        stated.append(("added_tokens.json", text, {"id": number}))
    for name, text, facts in stated:
        own = known.get(text, {})
        wrong = [key for key in ("id", *_FLAGS) if key in facts and facts[key] != own.get(key)]
        if not own or wrong:
            what = f"another {wrong[0]}" if own else "not"
            raise CheckpointError(
                f"{folder}: {name} has the added token {text!r}, which tokenizer.json has {'with ' * bool(own)}{what}; "
                "save the tokenizer again with transformers, so that both say the same"
            )


def _lowered(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    """Return `normalizer` after a step that makes texts lower case, where it has no such step."""
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer or {}]
    if any(step.get("type") == "Lowercase" for step in steps):
        return normalizer or {}
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *(step for step in steps if step)]}


def _with_prompt(folder: Path, stored: bytes, prompt: str) -> bytes:
    """Return the tokenizer with the tokens of `prompt` between its first special token and the text.

    Raises:
        CheckpointError: the tokens of the prompt depend on the text that follows.
    """
    value, tokenizer = json.loads(stored), _whole(stored)
    apart = (value.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
    frame = tokenizer.encode("").ids
    if not apart or not prompt[-1].isspace() or len(frame) != 2:
        raise CheckpointError(
            f"{folder}: config_sentence_transformers.json has the default prompt {prompt!r}; only one that ends with a "
            "blank, before a BERT tokenizer, can be carried, because its tokens must not depend on the text. Next: set "
            "default_prompt_name to null, and write the prompt before every text yourself"
        )
    inner = tokenizer.encode(prompt, add_special_tokens=False).ids
    first, last = ([frame[0], *inner], [frame[1]])
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "before", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "after", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": ids, "tokens": [str(tokenizer.id_to_token(i)) for i in ids]}
            for name, ids in (("before", first), ("after", last))
        },
    }
    return _written(value)
