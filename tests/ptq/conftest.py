"""Fixtures of the quantization of plain modules."""

from __future__ import annotations

import copy

import pytest

from plain_helpers import Images, Net, trained_images, trained_net


@pytest.fixture
def net() -> Net:
    return copy.deepcopy(trained_net())


@pytest.fixture
def images() -> Images:
    return copy.deepcopy(trained_images())
