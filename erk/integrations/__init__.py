"""ERK-Guid in other packages: diffusers, k-diffusion, ComfyUI.

No other module of erk imports these, so their packages are optional.
"""
