"""Problems with known solutions: denoisers and drifts, each with its exact answer."""

import torch

from erk.method.point import Point

STD = 0.7


def gaussian(x, sigma, labels=None):
    """D(x; sigma) for Gaussian data of deviation STD."""
    return STD**2 / (STD**2 + sigma**2) * x


def gaussian_drift(x, sigma):
    """The drift of `gaussian`: f = sigma x / (STD^2 + sigma^2), so 0 < sigma df/dx < 1."""
    return Point(x, sigma / (STD**2 + sigma**2) * x, sigma)


def gaussian_solution(x, sigma, sigma_next):
    """The solution of `gaussian_drift` at sigma_next, from x at sigma."""
    return x * ((STD**2 + sigma_next**2) / (STD**2 + sigma**2)) ** 0.5


def linear(rate):
    """The denoiser whose drift is f = rate x: D = (1 - rate sigma) x."""
    return lambda x, sigma, labels=None: (1 - rate * sigma) * x


def linear_drift(rate):
    """f = rate x, in the dtype of x; the solution is exp(rate (sigma_next - sigma)) x."""
    return lambda x, sigma: Point(x, rate * x, sigma)


def mixed_rates(first, others):
    """The denoiser whose drift is `first` x for the first sample and `others` x for the rest."""

    def denoiser(x, sigma, labels=None):
        rate = torch.full((len(x), *[1] * (x.ndim - 1)), others)
        rate[0] = first
        return (1 - rate * sigma) * x

    return denoiser


def damped_rates(x, sigma, labels=None):
    """A stiff first sample among mild ones, at every noise level."""
    rate = torch.full((len(x), *[1] * (x.ndim - 1)), 0.05)
    rate[0] = 3.0
    return x - sigma * rate * x / (1 + sigma)
