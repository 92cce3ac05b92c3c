"""ERK-Guid inside other people's packages: diffusers, k-diffusion, ComfyUI.

Nothing here is imported by the rest, and nothing here imports its package before it is asked for.
"""
