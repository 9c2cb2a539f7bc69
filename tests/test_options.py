"""An option is defined once: keywords, help, README and configs say what the dataclasses say."""

from dataclasses import fields
from inspect import getdoc
from typing import get_type_hints

import pytest

import moldiff
from moldiff.diffusion.compute import Arithmetic
from moldiff.diffusion.guidance import STEERING
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.sampling.config import SamplingConfig, SamplingOverrides
from moldiff.tasks.task import Request

NAMES = {"Arithmetic": Arithmetic, "PowerSampler": PowerSampler, "Request": Request}


def test_keywords_are_the_fields_of_the_config() -> None:
    hints = get_type_hints(SamplingConfig, localns=NAMES)
    assert get_type_hints(SamplingOverrides, localns=NAMES) == hints
    assert list(SamplingOverrides.__annotations__) == [one.name for one in fields(SamplingConfig)]


def test_every_option_is_explained() -> None:
    text = getdoc(moldiff.SamplingConfig) or ""
    for one in fields(SamplingConfig):
        assert one.metadata["help"]
        assert f"\n    {one.name}: " in text


def test_a_config_is_checked_where_it_is_made() -> None:
    with pytest.raises(MoldiffError, match="candidates: got 0, expected a whole number from 1 to 1000"):
        SamplingConfig(candidates=0)
    assert SamplingConfig().steering == STEERING
