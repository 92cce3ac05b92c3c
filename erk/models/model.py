"""Model: a network with its decoder, callable as the denoiser D(x; sigma)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from erk.io.addresses import shown
from erk.io.download import fetch, hub_files, is_offline
from erk.models.checkpoint import build, read
from erk.models.compiling import check_compiler, compile_network
from erk.models.encoders import Encoder, VAEEncoder
from erk.models.presets import find_preset
from erk.runtime.distributed import check_device
from erk.runtime.memory import free_memory
from erk.runtime.precision import ALL, NONE, RELEASED, allow_tf32

PRECISIONS = {
    "auto": None,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
KINDS = (".safetensors", ".pkl")  # pickles are used if a repository has no safetensors
NETWORK_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors",
                 "network/diffusion_pytorch_model.safetensors")  # fmt: skip
"""Network files in a repository, as PyTorchModelHubMixin, diffusers and EDM2Pipeline name them."""


class Model:
    """A denoiser with its decoder and metadata.

    Attributes
    ----------
    sample_shape
        (C, H, W) of one sample.
    label_dim
        Number of classes, 0 if unconditional.
    sigma_min, sigma_max
        Range of noise levels in training.
    churn_rule
        "edm" or "edm2": the rule by which the sampler of the release injects noise.
    device, encoder, network
        The device, the decoder to images and the wrapped module.
    name, sha256, licence
        Name, hash and licence of the file.

    Notes
    -----
    PyTorch's fused attention has no forward derivative on the CPU: call torch.func.jvp of an EDM2
    network within ``with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):``.
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
        self.churn_rule = getattr(network, "churn_rule", "edm2")
        if hasattr(network, "sigma_inv"):  # time of the network, for the discrete schedule
            self.sigma, self.sigma_inv = network.sigma, network.sigma_inv
        self.name, self.sha256, self.licence = "unnamed", "", "unknown"
        self._largest_batch = 0  # for which memory sufficed

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Denoise x: D(x; sigma) [B, C, H, W] float32.

        Parameters
        ----------
        x
            [B, C, H, W].
        sigma
            Noise level, a number, [] or [B].
        labels
            One-hot [B, label_dim], classes [B] (int) or None. An unconditional network ignores
            them; None means zeros for a conditional one.

        Raises
        ------
        MemoryError
            If the host has less free memory than the activations of this batch take.
        """
        self._check_memory(len(x))
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        return self.network(x, sigma, self._vectors(labels))

    def _check_memory(self, batch: int) -> None:
        """Raise MemoryError before the system ends the process, which it does on a CPU."""
        if self.device.type != "cpu" or batch <= self._largest_batch:
            return
        parts = (getattr(module, "image_bytes", 0) for module in self.network.modules())
        needed, free = batch * max(parts) * self.compute_dtype.itemsize / 4, free_memory()
        if needed > free:
            raise MemoryError(
                f"the activations of a batch of {batch} take {needed / 1e9:.3g} GB or more, but "
                f"{free / 1e9:.3g} GB of memory are free: take a smaller batch"
            )
        self._largest_batch = batch

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the network's computations; its inputs and outputs are float32."""
        return self.network.dtype_on(self.device)  # type: ignore[operator]

    def decode(self, x0: Tensor) -> Tensor:
        """Decode samples [B, C, H, W] to images uint8 [B, 3 or 1, H', W'].

        Raises DecodeError for NaN or infinity, ValueError as `check_decodable`.
        """
        self.check_decodable()
        return self.encoder.decode(x0)

    def check_decodable(self) -> None:
        """Raise ValueError if the samples do not have the channels that the decoder takes."""
        channels, allowed = self.sample_shape[0], getattr(self.encoder, "channels", None)
        if allowed is not None and channels not in allowed:
            raise ValueError(
                f"samples of '{self.name}' have {channels} channels, but its "
                f"{type(self.encoder).__name__} decodes {' or '.join(map(str, allowed))}: give a "
                "network of images, or one whose file names its encoder"
            )

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Round to the nearest noise levels of training, in float32 for discrete ones."""
        return self.network.round_sigma(sigma)  # type: ignore[operator]

    def _vectors(self, labels: Tensor | None) -> Tensor | None:
        if labels is None or self.label_dim == 0:
            return None
        if labels.ndim == 1 and not labels.is_floating_point():
            if labels.dtype == torch.bool:
                raise ValueError(
                    f"labels [{len(labels)}] of true and false are no classes: give class numbers "
                    f"(int64) or one-hot rows of width {self.label_dim}."
                )
            if labels.numel() and not 0 <= labels.min() <= labels.max() < self.label_dim:
                raise ValueError(
                    f"classes of '{self.name}' are 0 to {self.label_dim - 1}, "
                    f"not {labels.tolist()}."
                )
            return torch.nn.functional.one_hot(labels.long(), self.label_dim).to(torch.float32)
        if labels.ndim == 0 or labels.shape[-1] != self.label_dim:
            raise ValueError(
                f"labels have the shape {list(labels.shape)}, but '{self.name}' has "
                f"{self.label_dim} classes; give one-hot rows of that width or class numbers."
            )
        return labels


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    *,
    offline: bool = False,
    vae: str | None = None,
    vae_precision: str = "auto",
    vae_batch: int | None = None,
    compiled: bool = False,
) -> Model:
    """Load a network for inference.

    Parameters
    ----------
    name_or_path
        Name of a preset, or path or URL of a .pkl or .safetensors file.
    device
        Device of the network.
    precision
        Precision of the network: "auto" (float16 on CUDA if the file says so, else float32),
        "fp32", "tf32", "fp16" or "bf16". On CUDA it sets PyTorch's global TF32 switches.
    offline
        Use the download cache only.
    vae
        Hub name or folder of a latent decoder to use instead of the published one; the first
        `decode` loads it.
    vae_precision
        Precision of the latent decoder, TF32 included; "auto" is float32 as published, with TF32 in
        convolutions on CUDA.
    vae_batch
        Latents per call of the decoder; default: the value in the network's file, else 8.
    compiled
        Compile the network and its VAE at their first calls, and again for each new shape of the
        input; `erk generate --compile auto` does so if a run is long enough.

    Returns
    -------
    Model
        The network on `device`, with its decoder and metadata.

    Raises
    ------
    OSError
        If a file is unavailable.
    ValueError
        For an unknown name or an unsupported file.
    """
    for name in (precision, vae_precision):
        if name not in tuple(PRECISIONS):
            raise ValueError(f"unknown precision '{name}'; choose one of {', '.join(PRECISIONS)}.")
    check_device(device)
    if compiled:
        check_compiler(torch.device(device))
    address = address_of(name_or_path)
    path = fetch_checkpoint(address, offline)
    checkpoint = read(path)
    network, encoder = build(checkpoint, str(path))
    if torch.device(device).type == "cuda":  # by default PyTorch uses TF32 in convolutions
        allow_tf32(ALL if precision == "tf32" else NONE)
    if isinstance(encoder, VAEEncoder):
        encoder.offline = is_offline(offline)
        encoder.vae_name = vae or encoder.vae_name
        encoder.batch_size = vae_batch or encoder.batch_size
        encoder.dtype = PRECISIONS[vae_precision] or torch.float32
        encoder.compiled = compiled
        encoder.tf32 = {"auto": RELEASED, "tf32": ALL}.get(vae_precision, NONE)
    model = Model(network, encoder, device)
    model.name = shown(address) if "://" in address else path.name
    model.sha256 = checkpoint.sha256
    model.licence = checkpoint.metadata.get("licence", "unknown")
    model.network.compute_dtype = PRECISIONS[precision]  # type: ignore[assignment]
    network.fold()  # type: ignore[operator]
    if compiled:
        compile_network(network, model.device)
    return model


def address_of(source: str | Path) -> str:
    """Return the path or URL of a source; a bare word is a preset, else a file in this folder."""
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
    """Return the local file of a path or URL, downloading its metadata too.

    hf://owner/repo[@revision] is the repository's network. Metadata of safetensors is NAME.json; on
    the hub also config.json in the same folder. Raises OSError or ValueError as `fetch`.
    """
    if address.startswith("hf://"):
        address = _file_on_hub(address, offline)
    path = fetch(address, offline=offline)
    if (metadata := _metadata_of(address)) is not None:
        base, mark, rest = _split(address)
        try:
            fetch(metadata, offline=offline)
        except FileNotFoundError as missing:
            if not address.startswith("hf://"):
                raise
            try:
                fetch(f"{base.rpartition('/')[0]}/config.json{mark}{rest}", offline=offline)
            except FileNotFoundError:
                raise missing from None
    return path


def files_of(*sources: str | Path | None) -> list[str | None]:
    """Return the paths or URLs of networks and of their metadata; None: there are none."""
    addresses = [address_of(one) for one in sources if one is not None]
    return [*addresses, *map(_metadata_of, addresses)]


def _metadata_of(address: str) -> str | None:
    """Return the address of the metadata of safetensors at a URL; None for other files."""
    base, mark, rest = _split(address)
    if "://" not in address or not base.endswith(".safetensors"):
        return None
    return f"{base.removesuffix('.safetensors')}.json{mark}{rest}"


def _split(address: str) -> tuple[str, str, str]:
    """Return a URL without its query, or its revision on the hub, and what follows."""
    return address.partition("@" if address.startswith("hf://") else "?")


def _file_on_hub(address: str, offline: bool) -> str:
    """Add the network's file to hf://owner/repo[@revision]; return other addresses unchanged."""
    repo, mark, revision = address.partition("@")
    if repo.count("/") != 3:
        return address
    files = hub_files(address, offline)
    networks = next(filter(None, ([f for f in files if f.endswith(kind)] for kind in KINDS)), [])
    chosen = networks if len(networks) == 1 else [f for f in NETWORK_FILES if f in networks]
    if not chosen:
        content = f"several networks ({', '.join(networks[:8])})" if networks else "no network"
        raise ValueError(f"{address} holds {content}: give the file, {repo}/FILE{mark}{revision}.")
    return f"{repo}/{chosen[0]}{mark}{revision}"
