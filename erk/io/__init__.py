"""Files: atomic writes, downloads, restricted readers. Nothing here knows about diffusion."""
