"""Writes crates/data/tests/fixtures: small pictures, and what Pillow and torchvision make of them.

Needs torchvision and Pillow. Run it from the root of the repository:

    python tools/make_image_fixtures.py
"""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

OUT = Path(__file__).parent.parent / "crates" / "data" / "tests" / "fixtures"


def source(height, width):
    """Smooth colors, an edge and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [
        127 + 120 * np.sin(x / 7) * np.cos(y / 5),
        255 * x / width,
        255 * (y / height > x / width),
    ]
    image = np.stack(planes, -1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    image = source(37, 53)
    image.save(OUT / "source.png", optimize=True)
    bilinear = InterpolationMode.BILINEAR
    made = {
        "resize-16x20": F.resize(image, [16, 20], bilinear, antialias=True),
        "resize-50x31": F.resize(image, [50, 31], bilinear, antialias=True),
        "resize-80x90": F.resize(image, [80, 90], bilinear, antialias=True),
        "resize-24": F.resize(image, 24, bilinear, antialias=True),
        "center_crop-20x31": F.center_crop(image, [20, 31]),
        "center_crop-44x40": F.center_crop(image, [44, 40]),
        "crop-5-7-20x30-resize-24x24": F.resized_crop(image, 5, 7, 20, 30, [24, 24], bilinear),
        "flip": F.hflip(image),
    }
    for factor in [0.3, 0.75, 1.4]:
        made[f"brightness-{factor}"] = F.adjust_brightness(image, factor)
        made[f"contrast-{factor}"] = F.adjust_contrast(image, factor)
        made[f"saturation-{factor}"] = F.adjust_saturation(image, factor)
    for turn in [-0.4, 0.1, 0.25]:
        made[f"hue-{turn}"] = F.adjust_hue(image, turn)
    for name, result in made.items():
        result.save(OUT / f"{name}.png", optimize=True)

    # Files as people have them, each beside the pixels that Pillow finds in it.
    small = source(24, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    small.save(OUT / "color.jpg", quality=90)
    small.save(OUT / "progressive.jpg", quality=90, progressive=True)
    small.convert("L").save(OUT / "gray.jpg", quality=90)
    small.convert("CMYK").save(OUT / "cmyk.jpg", quality=95)
    small.save(OUT / "turned.jpg", quality=90, exif=exif)
    small.save(OUT / "lossless.webp", lossless=True)
    small.quantize(16).save(OUT / "palette.png")
    small.convert("RGBA").save(OUT / "alpha.png")
    small.convert("LA").save(OUT / "gray-alpha.png")
    for path in ["color.jpg", "progressive.jpg", "gray.jpg", "cmyk.jpg", "lossless.webp", "palette.png",
                 "alpha.png", "gray-alpha.png"]:
        Image.open(OUT / path).convert("RGB").save(OUT / f"{path}.rgb.png", optimize=True)
    turned = Image.open(OUT / "turned.jpg").convert("RGB").transpose(Image.Transpose.ROTATE_270)
    turned.save(OUT / "turned.jpg.rgb.png", optimize=True)


if __name__ == "__main__":
    main()
