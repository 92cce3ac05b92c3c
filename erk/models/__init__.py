"""Networks: architectures, checkpoints, encoders, presets, adapters and post-hoc EMA."""
