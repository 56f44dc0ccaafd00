"""Tiny models of transformers' depth classes, random, saved as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

USABLE = ("depth_anything", "depth_anything_metric", "depth_pro", "dpt", "dpt_dinov2", "dpt_hybrid", "glpn")
USABLE += ("tipsv2_dpt", "zoedepth")
REFUSED = ("chmv2", "prompt_depth_anything")
VISION = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
DINO = VISION | {"patch_size": 14, "image_size": 56, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}


def networks() -> dict[str, object]:
    """A configuration of each kind of network by the names of USABLE."""
    import transformers as library

    def with_backbone(name: str, backbone: object, **settings: object) -> object:
        return getattr(library, name)(backbone_config=backbone, **settings)

    dino = library.Dinov2Config(**DINO)
    beit = {"patch_size": 16, "image_size": 64, "use_relative_position_bias": True, "reshape_hidden_states": False}
    beit = library.BeitConfig(**VISION, **beit, out_features=["stage1", "stage2", "stage3", "stage4"])
    small = {"reassemble_hidden_size": 16, "head_hidden_size": 4} | NECK
    image_models = {
        f"{part}_model_config": DINO | {"model_type": "dinov2", "image_size": 28, "patch_size": 14}
        for part in ("image", "patch", "fov")
    }
    bit = library.BitConfig(
        embedding_size=8,
        hidden_sizes=[32, 32, 32],
        depths=[1, 1, 1],
        num_groups=4,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    dpt = VISION | NECK | {"image_size": 64, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
    return {
        "depth_anything": with_backbone("DepthAnythingConfig", dino, **small),
        "depth_anything_metric": with_backbone(
            "DepthAnythingConfig", dino, depth_estimation_type="metric", max_depth=80, **small
        ),
        "depth_pro": library.DepthProConfig(
            patch_size=28,
            fusion_hidden_size=8,
            num_fov_head_layers=1,
            intermediate_hook_ids=[3, 1],
            intermediate_feature_dims=[8, 8],
            scaled_images_ratios=[0.5, 1],
            scaled_images_overlap_ratios=[0.0, 0.5],
            scaled_images_feature_dims=[8, 8],
            use_fov_model=True,
            merge_padding_value=0,
            **image_models,
        ),
        "dpt": library.DPTConfig(**dpt),
        "dpt_dinov2": with_backbone("DPTConfig", dino, add_projection=True, neck_hidden_sizes=[8, 8, 8, 8]),
        "dpt_hybrid": library.DPTConfig(
            **dpt | {"neck_hidden_sizes": [32, 32, 8, 8]},
            is_hybrid=True,
            backbone_config=bit,
            backbone_featmap_shape=[1, 32, 4, 4],
            readout_type="project",
        ),
        "glpn": library.GLPNConfig(
            hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=8, num_attention_heads=[1, 1, 2, 2]
        ),
        "tipsv2_dpt": library.Tipsv2DptConfig(
            backbone_config=DINO | {"model_type": "tipsv2_vision_model"}, num_depth_bins=8, **NECK
        ),
        "zoedepth": with_backbone(
            "ZoeDepthConfig", beit, bottleneck_features=8, num_attractors=[4, 2, 2, 1], bin_embedding_dim=8, **NECK
        ),
    }


def write_depth_model(directory: Path, name: str = "depth_anything", licence: str = "cc-by-nc-4.0") -> str:
    """A model in `directory` whose random weights tell pictures apart; returns what `model.depth` calls it."""
    import transformers

    settings = networks()[name]
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    network = transformers.MODEL_FOR_DEPTH_ESTIMATION_MAPPING[type(settings)](settings)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    biases = [weight for part, weight in network.named_parameters() if part.startswith("head.") and weight.ndim == 1]
    if biases:
        torch.nn.init.constant_(biases[-1], 1.0)  # what a last ReLU gives would be 0 everywhere
    network.save_pretrained(directory)
    (directory / "README.md").write_text(f"---\nlicense: {licence}\ntags: [vision]\n---\nA model.\n")
    seen = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
    (directory / "preprocessor_config.json").write_text(json.dumps(seen))
    return f"hf:{directory}"
