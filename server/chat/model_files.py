"""What a model folder says about itself in its JSON files: stop tokens, context, vocabulary, sampling.

Text process. Whatever is wrong with the folder is a ModelUnavailable of one sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.foreign_json import read_json
from server.errors import ModelUnavailable

# For the few models that name no limit (recurrent ones); `context_length` in config.toml overrides it.
CONTEXT_WHEN_UNSAID = 32_768
# transformers writes 1e30 as `model_max_length` where it does not know one.
_LONGEST_CONTEXT = 2**31


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets that leaves a sampling field out: the model's `generation_config.json`, else OpenAI's 1.0.

    `do_sample` absent leaves the temperature alone, as its publisher gives one to be used; an explicit
    `"do_sample": false` means greedy, temperature 0.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`stop_ids`: of generation_config.json, else of config.json."""

    stop_ids: frozenset[int]
    context_length: int
    vocab_size: int | None
    sampling: SamplingDefaults


def read_object(folder: Path, name: str, *, required: bool = False) -> dict[str, Any]:
    """The JSON object in file `name`; empty when the file is absent and not required."""
    try:
        value = read_json((folder / name).read_bytes())
    except FileNotFoundError:
        if required:
            raise ModelUnavailable(f"The model's folder has no {name}.") from None
        return {}
    except OSError as error:
        raise ModelUnavailable(f"The model's {name} cannot be read.") from error
    except ValueError as error:
        raise ModelUnavailable(f"The model's {name} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"The model's {name} is not a JSON object.")
    return value


def read_facts(folder: Path) -> ModelFacts:
    config = read_object(folder, "config.json", required=True)
    nested = config.get("text_config")
    # Multimodal checkpoints keep the language model's values one level down.
    if isinstance(nested, dict):
        config = nested | {name: value for name, value in config.items() if value is not None}
    generation = read_object(folder, "generation_config.json")
    tokenizer = read_object(folder, "tokenizer_config.json")
    return ModelFacts(
        stop_ids=_ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id")),
        context_length=_count(config.get("max_position_embeddings"))
        or _count(tokenizer.get("model_max_length"))
        or CONTEXT_WHEN_UNSAID,
        vocab_size=_count(config.get("vocab_size")),
        sampling=_sampling(generation),
    )


def _ids(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, int) and v >= 0)


def _count(value: object) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < _LONGEST_CONTEXT:
        return int(value)
    return None


def _sampling(generation: dict[str, Any]) -> SamplingDefaults:
    def number(name: str, default: float, low: float, high: float) -> float:
        value = generation.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ModelUnavailable(f"The model's generation_config.json has a {name} that cannot be used.")
        return float(value)

    temperature = number("temperature", 1.0, 0, 100)
    return SamplingDefaults(
        temperature=0.0 if generation.get("do_sample") is False else temperature,
        top_p=number("top_p", 1.0, 0, 1) or 1.0,
        top_k=int(number("top_k", 0, -1, _LONGEST_CONTEXT)) if generation.get("top_k") != -1 else 0,
        min_p=number("min_p", 0.0, 0, 1),
        repetition_penalty=number("repetition_penalty", 1.0, math.ulp(0.0), 100),
    )


def special_texts(tokenizer: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... of tokenizer_config.json: strings, or AddedToken objects with the text in `content`.
    A model's own names for more of them stand one level down."""
    more = tokenizer.get("extra_special_tokens")
    texts: dict[str, str] = {}
    for name, value in (tokenizer | (more if isinstance(more, dict) else {})).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            texts[name] = text
    return texts
