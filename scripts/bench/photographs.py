"""Random images that compress like photographs."""

import numpy as np


def photographs(n: int, size: int) -> np.ndarray:
    """Draw uint8 images [n, 3, size, size] with amplitudes ~ f^-1.7 and sensor noise.

    At 512 x 512 their PNG files have about half the size of the raw pixels.
    """
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    spectrum = np.fft.rfft2(rng.normal(size=(n, 3, size, size)))
    smooth = np.fft.irfft2(spectrum / f**1.7, s=(size, size))
    smooth /= smooth.std((2, 3), keepdims=True)
    noise = rng.normal(size=smooth.shape)
    return (smooth * 50 + noise + 128).clip(0, 255).astype(np.uint8)
