"""What quantize/source/compat.py relies on in mlx-lm.

A failure here is not to be patched over: read the reason there, see whether it can go, then move the bound in
pyproject.toml.
"""

from __future__ import annotations

import inspect

import mlx_lm
import pytest
from mlx_lm import utils
from mlx_lm.models import llama

from quantize.source import compat


def test_the_release_is_the_one_that_was_read() -> None:
    assert mlx_lm.__version__.startswith("0.32."), "quantize/source/compat.py was checked against 0.32"


def test_the_classes_are_those_that_a_finished_folder_is_loaded_with() -> None:
    assert inspect.signature(utils.load_model).parameters["get_model_classes"].default is utils._get_classes
    assert list(inspect.signature(utils._get_classes).parameters) == ["config"]
    assert compat.model_classes({"model_type": "llama"}) == (llama.Model, llama.ModelArgs)
    # Another name of the same model.
    assert compat.model_classes({"model_type": "mistral"}) == (llama.Model, llama.ModelArgs)


def test_what_is_not_known_raises_what_is_caught() -> None:
    with pytest.raises(ValueError, match="Model type nonesuch not supported"):
        compat.model_classes({"model_type": "nonesuch"})
    with pytest.raises(KeyError):
        compat.model_classes({})
    with pytest.raises(ImportError):
        compat.model_classes({"model_type": "olmo"})


def test_arguments_are_made_of_a_whole_config_and_a_model_of_arguments_alone() -> None:
    assert list(inspect.signature(llama.ModelArgs.from_dict).parameters) == ["params"]
    assert list(inspect.signature(llama.Model).parameters) == ["args"]
