"""Files of torch.save are read as torch reads them, and within their bytes (H4, H6)."""

import io

import pytest
import torch
from hostile.network_files import old_file, persistent
from opcodes import call, const

from erk.io.torch_files import TYPES, read_state

FORMATS = pytest.mark.parametrize("is_zip", [True, False])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pt"


def check(path, content, is_zip):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    expected = torch.load(path, weights_only=True)
    with open(path, "rb") as file:
        state = read_state(file)
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert (state[name].dtype, state[name].stride()) == (value.dtype, value.stride())
        assert torch.equal(state[name], value)
    return state


@FORMATS
@pytest.mark.parametrize("dtype", TYPES.values())
def test_tensors_of_every_type(dtype, is_zip, path):
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    parts = {"all": values, "turned": values.permute(2, 0, 1)[1:], "one": values[0, 0, 0]}
    check(path, parts, is_zip)


@FORMATS
def test_states_of_modules_with_their_versions(is_zip, path):
    """nn.Module.state_dict stores versions of its modules as an attribute of the dictionary."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    check(path, network.state_dict(), is_zip)
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    check(path, {"weight": parameter, "empty": torch.empty(0, 3)}, is_zip)


@FORMATS
def test_tensors_that_share_a_storage_still_do(is_zip, path):
    values = torch.arange(6.0)
    state = check(path, {"all": values, "end": values[4:], "again": values}, is_zip)
    assert state["end"].data_ptr() == state["all"].data_ptr() + 16


def test_files_of_the_first_versions_of_torch():
    storage = persistent(const("7"), 4).replace(b"tQ", const(None) + b"tQ")
    body = call("torch._utils._rebuild_tensor", storage, const(1), const((3,)), const((1,)))
    body = body.replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat")
    values = torch.arange(4.0).numpy().tobytes()
    data = old_file(body).removesuffix(b"\x80\x02].") + b"\x80\x02](" + const("7") + b"e."
    data += (4).to_bytes(8, "little") + values
    assert read_state(io.BytesIO(data)).tolist() == [1, 2, 3]
    with pytest.raises(Exception, match=r"^8$"):  # bytes that are missing
        read_state(io.BytesIO(data[:-8]))


@FORMATS
def test_values_are_read_once(is_zip, path):
    """A hundred views of 4 MB take no budget: the file has them once."""
    values = torch.zeros(1 << 20)
    check(path, {str(i): values[i:] for i in range(100)}, is_zip)
