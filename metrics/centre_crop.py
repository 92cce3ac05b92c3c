"""ADM's centre crop, which prepares ImageNet for ADM, EDM2 and comparisons with them."""

from PIL import Image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square of an image and scale it to ``size`` x ``size`` pixels, RGB.

    The image is converted to RGB, halved with a box filter until its shorter side is less than
    2 ``size``, scaled bicubically until that side is ``size`` (small images are enlarged), then
    cropped (Dhariwal and Nichol 2021, ``center_crop_arr``; EDM2 calls it
    ``center-crop-dhariwal``). Raises OSError for an image whose pixels are damaged.
    """
    rgb = image.convert("RGB")
    while min(rgb.size) >= 2 * size:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.BOX)
    scale = size / min(rgb.size)
    width, height = round(rgb.width * scale), round(rgb.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))
