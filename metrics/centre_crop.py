"""ADM's centre crop, by which ImageNet is prepared for ADM, EDM2 and what is compared with them."""

from PIL import Image


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, RGB, ``size`` x ``size`` pixels.

    The picture is halved with a box filter until its shorter side is less than 2 ``size``, then
    scaled bicubically until that side is ``size`` (small pictures are enlarged), then cut. Other
    modes than RGB are converted before (Dhariwal and Nichol 2021, ``center_crop_arr``; EDM2 calls
    it ``center-crop-dhariwal``). Raises OSError for a picture whose pixels are damaged.
    """
    rgb = picture.convert("RGB")
    while min(rgb.size) >= 2 * size:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.BOX)
    scale = size / min(rgb.size)
    width, height = round(rgb.width * scale), round(rgb.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))
