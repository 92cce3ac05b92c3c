"""Convert a network's pickle to safetensors with metadata in a JSON file.

No code in the pickle is run, and every tensor keeps its type (float16 stays float16), so the
written network gives the same outputs bit for bit. It is read back before success is reported.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from erk.models.checkpoint import build, read, write_safetensors
from erk.models.model import address_of, fetch_checkpoint


def convert(source: str, output: Path, offline: bool = False) -> str:
    """Write the network of a checkpoint to a .safetensors file, and its metadata beside it.

    Parameters
    ----------
    source : str
        A path, https://, hf://owner/repo/file or a preset's name.
    output : Path
        The .safetensors file to write.
    offline : bool
        Download nothing; use the cache only.

    Returns
    -------
    str
        One line on what was written.

    Raises
    ------
    ValueError, OSError
        The source is no network, or the file read back differs from it.
    """
    path = fetch_checkpoint(address_of(source), offline)
    if path.suffix == ".safetensors":
        raise ValueError(
            f"{path} is safetensors already: copy it with its .json file (pickles are converted, "
            "such as those of the presets edm2-img512-s, ...)"
        )
    checkpoint = read(path)
    network, _ = build(checkpoint, str(path))
    origin = {"file": path.name, "sha256": checkpoint.sha256}
    write_safetensors(
        output, checkpoint._replace(metadata=checkpoint.metadata | {"source": origin})
    )
    written = read(output)
    again, _ = build(written, str(output))
    same_parts = written[:2] == checkpoint[:2]  # architecture and encoder
    if not same_parts or not same_tensors(network.state_dict(), again.state_dict()):
        output.unlink()
        output.with_suffix(".json").unlink()
        raise OSError(f"{output} does not hold what was written to it; check the disk")
    return (
        f"{path.name} ({path.stat().st_size / 1e6:.2f} MB) -> {output} "
        f"({output.stat().st_size / 1e6:.2f} MB): {checkpoint.architecture.name}, "
        f"{len(checkpoint.tensors)} tensors, read back and equal bit for bit"
    )


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether both hold the same names, types, shapes and bits (NaN and -0 included)."""

    def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        return tensor.dtype, tensor.shape, flat.numpy().tobytes()

    return first.keys() == second.keys() and all(bits(first[k]) == bits(second[k]) for k in first)
