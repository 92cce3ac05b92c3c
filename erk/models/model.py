"""erk.Model: a network with its decoder, callable as the denoiser D(x; sigma)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from erk.io.download import fetch, hub_files, is_offline, sha256_of
from erk.models.checkpoint import build, read
from erk.models.compiling import check_compiler, compile_network
from erk.models.encoders import Encoder, VAEEncoder
from erk.models.presets import find_preset
from erk.runtime.precision import ALL, NONE, RELEASED, allow_tf32

PRECISIONS = {
    "auto": None,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
KINDS = (".safetensors", ".pkl")  # a repository's pickles count where it has no safetensors
NETWORK_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors",
                 "network/diffusion_pytorch_model.safetensors")  # fmt: skip
"""Names of a repository's network: PyTorchModelHubMixin's, diffusers', those of EDM2Pipeline."""


class Model:
    """A denoiser with what is known of it.

    sample_shape: (C, H, W) of one sample; label_dim: number of classes, 0 if unconditional;
    device; encoder; name and sha256 of the file; licence of the weights; sigma_min, sigma_max:
    the noise levels the network was trained for.

    PyTorch's fused attention has no forward derivative on the CPU: torch.func.jvp of an EDM2
    network needs ``with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):`` around it.
    """

    def __init__(self, network: nn.Module, encoder: Encoder, device: str | torch.device = "cpu"):
        self.network = network.to(device)
        self.encoder = encoder
        self.device = torch.device(device)
        res, channels = network.img_resolution, network.img_channels
        self.sample_shape: tuple[int, int, int] = (channels, res, res)  # type: ignore[assignment]
        self.label_dim = int(network.label_dim)  # type: ignore[arg-type]
        self.sigma_min = float(network.sigma_min)  # type: ignore[arg-type]
        self.sigma_max = float(network.sigma_max)  # type: ignore[arg-type]
        if hasattr(network, "sigma_inv"):  # its own time, which the discrete schedule uses
            self.sigma, self.sigma_inv = network.sigma, network.sigma_inv
        self.name, self.sha256, self.licence = "unnamed", "", "unknown"

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoised D(x; sigma): x [B, C, H, W] float32 -> [B, C, H, W] float32.

        sigma: a number, [] or [B]; labels: one-hot [B, label_dim], classes [B] (int) or None.
        A network without labels ignores them; a conditional one without labels sees zeros.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        return self.network(x, sigma, self._vectors(labels))

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the network computes in; what goes in and comes out is float32."""
        return self.network.dtype_on(self.device)  # type: ignore[operator]

    def decode(self, x0: Tensor) -> Tensor:
        """Samples [B, C, H, W] -> pictures uint8 [B, 3, H', W'] (or [B, 1, H', W']).

        Raises DecodeError if the decoder gives NaN or infinity.
        """
        return self.encoder.decode(x0)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels the network knows, in float32 for discrete ones."""
        return self.network.round_sigma(sigma)  # type: ignore[operator]

    def _vectors(self, labels: Tensor | None) -> Tensor | None:
        if labels is None or self.label_dim == 0:
            return None
        if labels.ndim == 1 and not labels.is_floating_point():
            if labels.numel() and not 0 <= labels.min() <= labels.max() < self.label_dim:
                raise ValueError(
                    f"class numbers run from 0 to {self.label_dim - 1} in '{self.name}', "
                    f"but {labels.tolist()} were given."
                )
            return torch.nn.functional.one_hot(labels.long(), self.label_dim).to(torch.float32)
        if labels.ndim == 0 or labels.shape[-1] != self.label_dim:
            raise ValueError(
                f"labels have the shape {list(labels.shape)}, but '{self.name}' has "
                f"{self.label_dim} classes; give one-hot rows of that width or class numbers."
            )
        return labels


def load_model(
    source: str | Path,
    device: str | torch.device = "cpu",
    *,
    precision: str = "auto",
    offline: bool = False,
    vae: str | None = None,
    vae_precision: str = "auto",
    vae_batch: int | None = None,
    compiled: bool = False,
) -> Model:
    """Load a network: a path or URL of a .pkl or .safetensors file, or the name of a preset.

    `precision` is what the network computes in: auto (float16 on CUDA where the file says so,
    else float32), fp32, tf32, fp16, bf16; loading on CUDA sets torch's global TF32 switches
    accordingly. `offline` forbids downloads. `vae` replaces the hub name of the latent decoder
    (e.g. by a folder); it is loaded by the first `decode`, not here. It computes in
    `vae_precision` (whose TF32 is its own; auto: float32 as published, which on CUDA is with TF32
    in convolutions), `vae_batch` latents at a time. `compiled` compiles the network at its first
    call, and anew for every other shape of its input.
    Raises OSError or ValueError, each with one sentence.
    """
    for name in (precision, vae_precision):
        if name not in PRECISIONS:
            raise ValueError(f"unknown precision '{name}'; choose one of {', '.join(PRECISIONS)}.")
    if compiled:
        check_compiler(torch.device(device))
    address = address_of(source)
    path = fetch_checkpoint(address, offline)
    checkpoint = read(path)
    network, encoder = build(checkpoint, str(path))
    if torch.device(device).type == "cuda":  # torch's own default lets convolutions use TF32
        allow_tf32(ALL if precision == "tf32" else NONE)
    if isinstance(encoder, VAEEncoder):
        encoder.offline = is_offline(offline)
        encoder.vae_name = vae or encoder.vae_name
        encoder.batch_size = vae_batch or encoder.batch_size
        encoder.dtype = PRECISIONS[vae_precision] or torch.float32
        encoder.tf32 = {"auto": RELEASED, "tf32": ALL}.get(vae_precision, NONE)
    model = Model(network, encoder, device)
    model.name = address if "://" in address else path.name
    model.sha256 = sha256_of(path)
    model.licence = checkpoint.card.get("licence", "unknown")
    model.network.compute_dtype = PRECISIONS[precision]  # type: ignore[assignment]
    network.fold()  # type: ignore[operator]
    if compiled:
        compile_network(network, model.device)
    return model


def address_of(source: str | Path) -> str:
    """The path or URL that `source` means; a bare word is a preset's name, else a file here."""
    text = str(source)
    if isinstance(source, Path) or "/" in text or text.endswith((".pkl", ".safetensors")):
        return text
    try:
        return find_preset(text).net
    except ValueError:
        if Path(text).is_file():
            return text
        raise


def fetch_checkpoint(address: str, offline: bool = False) -> Path:
    """The local file of a path or URL; of remote safetensors the card is fetched as well.

    Of hf://owner/repo[@revision] it is the repository's network. A card is NAME.json; on the hub
    also config.json in the same folder.
    """
    if address.startswith("hf://"):
        address = _file_on_hub(address, offline)
    path = fetch(address, offline=offline)
    if "://" in address and path.suffix == ".safetensors":
        place, mark, rest = address.partition("@" if address.startswith("hf://") else "?")
        try:
            fetch(f"{place.removesuffix('.safetensors')}.json{mark}{rest}", offline=offline)
        except FileNotFoundError as lacking:
            if not address.startswith("hf://"):
                raise
            try:
                fetch(f"{place.rpartition('/')[0]}/config.json{mark}{rest}", offline=offline)
            except FileNotFoundError:
                raise lacking from None
    return path


def _file_on_hub(address: str, offline: bool) -> str:
    """hf://owner/repo[@revision] with its network's file; an address with a file as it is."""
    repo, mark, revision = address.partition("@")
    if repo.count("/") != 3:
        return address
    files = hub_files(address, offline)
    found = next(filter(None, ([f for f in files if f.endswith(kind)] for kind in KINDS)), [])
    chosen = found if len(found) == 1 else [name for name in NETWORK_FILES if name in found]
    if not chosen:
        told = f"several networks ({', '.join(found[:8])})" if found else "no network"
        raise ValueError(f"{address} holds {told}: give the file, {repo}/FILE{mark}{revision}.")
    return f"{repo}/{chosen[0]}{mark}{revision}"
