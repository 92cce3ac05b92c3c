"""Switches of float32 products and convolutions are set together and restored."""

import pytest
import torch

from erk.runtime.precision import ALL, NONE, RELEASED, _switches, tf32_only
from metrics.extractors.network import computing


def states():
    return [(operation, getattr(owner, name)) for operation, owner, name, *_ in _switches()]


@pytest.mark.parametrize("operations", [NONE, RELEASED, ALL])
def test_tf32_is_allowed_where_asked_and_restored(operations):
    before = states()
    with tf32_only(operations):
        for operation, _, _, off, on in _switches():
            expected = on if operation in operations else off
            assert {state for name, state in states() if name == operation} == {expected}
    assert states() == before


def test_extractors_use_deterministic_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with computing("fp32", "cpu"):
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic
