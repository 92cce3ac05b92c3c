"""The picture of the training is that of the committed cards."""

import io

import numpy as np
from PIL import Image

from scripts.train.curves import ROOT, draw


def test_the_committed_image_is_drawn_from_the_cards():
    """Fonts may differ between machines, so a few pixels may."""
    drawn, kept = (
        np.asarray(Image.open(source).convert("L").resize((300, 100)), dtype=float)
        for source in (io.BytesIO(draw()), ROOT / "docs/images/training.png")
    )
    assert np.abs(drawn - kept).mean() < 2
