"""Depth of an image from an exported ONNX file, without FeatDepth and without torch.

pip install onnxruntime numpy pillow
python onnx_depth.py MODEL.onnx IMAGE [--out depth.png]

Writes a picture, near bright and far dark, and prints depths at a few places.
"""

import argparse

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="written by python -m featdepth.export --format onnx")
    parser.add_argument("image", help="any that Pillow reads")
    parser.add_argument("--out", default="depth.png", help="the picture (default: depth.png)")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    image = ImageOps.exif_transpose(Image.open(arguments.image)).convert("RGB")
    height, width = session.get_inputs()[0].shape[2:]
    if isinstance(height, int):  # exported for one size only
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    depth = session.run(["depth"], {"image": pixels})[0][0, 0]

    unit = session.get_modelmeta().custom_metadata_map["unit"]
    print(f"{depth.shape[1]} x {depth.shape[0]} pixels, depth in {unit}")
    for percent in (5, 50, 95):
        print(f"{percent:3} % of the pixels are nearer than {np.percentile(depth, percent):.2f}")
    inverse = 1 / depth
    bright = np.clip(255 * inverse / np.percentile(inverse, 98), 0, 255)
    Image.fromarray(bright.astype(np.uint8)).save(arguments.out)


if __name__ == "__main__":
    main()
