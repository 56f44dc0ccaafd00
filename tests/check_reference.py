"""Compare this implementation with reference cases: `python tests/check_reference.py CASE.npz... [--kitti DIR]`.

Prints the worst error of each quantity beside its tolerance; exit code 1 when one is beyond it. The kind of a case is
read off its content. The cases hold numbers that the published implementations produce; see tests/data/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from featdepth.config import Config, Data, Loss
from featdepth.data.kitti.calibration import Calibration
from featdepth.data.kitti.ground_truth import lidar_depth
from featdepth.errors import InputError, run_program
from featdepth.import_weights import convert
from featdepth.metrics.depth import METRICS, evaluation_mask, flip_post_process, score_image
from featdepth.models import FeatDepth, Prediction
from featdepth.objective import compute_terms
from featdepth.odometry.scores import ALIGNMENTS, score_trajectory


class Comparison(NamedTuple):
    """One quantity: its worst error and the tolerance it has to stay within."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


TERMS = {
    "min_reconstruct_loss": "photometric",
    "min_perceptional_loss": "feature_metric",
    "smooth_loss": "smoothness",
    "img_reconstruct_loss": "reconstruction",
    "feature_regularization_loss": "feature_regularisation",
}
NETWORKS = {
    "DepthEncoder": "depth_encoder",
    "DepthDecoder": "depth_decoder",
    "PoseEncoder": "pose_encoder",
    "PoseDecoder": "pose_decoder",
    "Encoder": "feature_encoder",
    "Decoder": "feature_decoder",
}
OBJECTIVES = {"mono_fm": "feature_metric", "mono_fm_joint": "joint", "autoencoder": "autoencoder"}
# Hyper-parameters in a case's `meta` -> keys of the model and the loss section.
MODEL_KEYS = {"min_depth": "min_depth", "max_depth": "max_depth"}
LOSS_KEYS = {
    "automask": "automask",
    "disp_norm": "normalise_disparity",
    "smoothness_weight": "smoothness",
    "perception_weight": "feature_metric",
    "dis": "discriminative",
    "cvt": "convergent",
}
# Terms smaller than this are compared absolutely, at this scale.
SMALLEST_TERM = 1e-6
FLOAT32_TERM = 1e-3
# From the unit of the published stereo models to metres, in the depth metrics.
STEREO_SCALE = 5.4


def compare(path: Path, kitti: Path | None = None) -> list[Comparison]:
    """All comparisons of the case in `path`. Raises InputError for a file that is no case."""
    try:
        case = dict(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a reference case ({error})") from error
    if "eval/disp/0/0" in case or "eval/res_img/0/0" in case:
        return list(compare_networks(case, path))
    if "pred_disp/0" in case:
        return list(compare_depth_metrics(case))
    if "est" in case:
        return list(compare_odometry(case))
    if any(key.startswith("shape/") for key in case):
        if kitti is None:
            raise InputError(f"{path}: needs the scans, give --kitti DIR (the folder that holds 2011_09_26)")
        return list(compare_lidar(case, kitti))
    raise InputError(f"{path}: no kind of reference case that is known here")


def reference_tensor(key: str, shape: list[int]) -> Tensor:
    """The value of the reference's tensor `key`, which is made from its name alone."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    values = random.standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
        values = values * (0.1 if "DepthDecoder.disp" in key else 10 if key == "PoseDecoder.conv3.weight" else 1)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def reference_state(path: Path) -> dict[str, Tensor]:
    """The published state dict of the case in `path`, with every tensor filled from its key."""
    names = [path.name.replace(".npz", ".keys.json"), path.name.replace("_stereo", "").replace(".npz", ".keys.json")]
    found = [path.parent / name for name in names if (path.parent / name).is_file()]
    if not found:
        raise InputError(f"{path}: needs the names and shapes of its tensors, {names[0]} beside it")
    keys = json.loads(found[0].read_text(encoding="utf-8"))
    return {key: reference_tensor(key, shape) for key, shape in keys.items()}


def network_case(case: dict[str, np.ndarray], path: Path) -> tuple[FeatDepth, dict[str, Tensor], Config]:
    """Model, batch and configuration of a network case, with the frames and hyper-parameters of its `meta`."""
    meta = json.loads(bytes(case["meta"]))
    frames, stereo = meta["frame_ids"], "s" in meta["frame_ids"]
    model = convert(reference_state(path), meta["height"], meta["width"], metres_per_unit=1.0 if stereo else None)
    if model.settings.objective != OBJECTIVES[meta["model"]]:
        raise InputError(f"{path}: recognised as {model.settings.objective}, is {meta['model']}")
    model.frames = frames
    model.settings = replace(model.settings, **renamed(meta, MODEL_KEYS))
    if model.has_depth:
        model.depth_decoder.dropout.p = 0.0
    config = Config(
        data=Data(root=".", frames=frames, height=meta["height"], width=meta["width"]),
        model=model.settings,
        loss=Loss(**renamed(meta, LOSS_KEYS)),
    )
    images = torch.stack([torch.from_numpy(case[f"image/{frame}"]).float() / 255 for frame in frames], dim=1)
    # The autoencoder alone has no cameras.
    intrinsics = torch.from_numpy(case["K"])[:, :3, :3] if "K" in case else torch.eye(3).repeat(len(images), 1, 1)
    batch = {"images": images, "augmented": images, "intrinsics": intrinsics}
    if stereo:
        batch["stereo_pose"] = torch.from_numpy(case["stereo_T"])
    return model, batch, config


def renamed(meta: dict[str, object], names: dict[str, str]) -> dict[str, object]:
    """The values of `meta` that `names` has another name for, under that one."""
    return {name: meta[published] for published, name in names.items() if published in meta}


def compare_networks(case: dict[str, np.ndarray], path: Path) -> Iterator[Comparison]:
    """Disparities, poses, reconstructions, loss terms and gradient norms of a network case.

    Batch norm over the 24 values that a channel of layer4 has here amplifies float32 rounding until a loss term moves
    by 1e-4, as much as the tolerance: it differs between one thread and two. So the terms are compared twice: with the
    networks in float64 and the objective in float32, which shows whether the mathematics is the same, and all in
    float32, where the tolerance of a term leaves room for that rounding (`FLOAT32_TERM`).
    """
    model, batch, config = network_case(case, path)
    model.eval()
    with torch.no_grad():
        yield from compare_outputs(model(batch), case, config)
    model.train()
    for comparison in compare_terms(compute_terms(model(batch), batch, config), case):
        yield Comparison(f"{comparison.quantity} (all in float32)", comparison.error, FLOAT32_TERM)
    model.double()
    exact = {name: value.double() for name, value in batch.items()}
    terms = compute_terms(to_float32(model(exact)), batch, config)
    yield from compare_terms(terms, case)
    yield from compare_gradients(model, {name: term.sum(0).mean() for name, term in terms.items()}, case)


def to_float32(prediction: Prediction) -> Prediction:
    """The same prediction in float32, through which gradients flow."""
    return Prediction(
        *(
            tuple(value.float() for value in field)
            if isinstance(field, tuple)
            else field
            if field is None
            else field.float()
            for field in prediction
        )
    )


def compare_depth_metrics(case: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """Scores per image, their means and the median ratios of each protocol, and flip post-processing; relative."""
    expected = json.loads(bytes(case["expected"]))
    count = sum(key.startswith("pred_disp/") for key in case)
    protocols = {"eigen_median": ("garg", 80.0), "eigen_stereo": ("garg", 80.0), "full_median": ("none", None)}
    for protocol, (crop, cap) in protocols.items():
        scores = []
        for image in range(count):
            truth = sparse_map(case[f"gt_shape/{image}"], case[f"gt_index/{image}"], case[f"gt_depth/{image}"])
            mask = evaluation_mask(truth, crop, cap)
            scores.append(score_image(torch.from_numpy(case[f"pred_disp/{image}"]), truth, mask, STEREO_SCALE))
        fixed = protocol == "eigen_stereo"
        rows = torch.stack([score.fixed_scale if fixed else score.median_scaled for score in scores]).double()
        columns = [METRICS.index(name) for name in expected["columns"]]
        rows = rows[:, columns]
        for name, value in (("per_image", rows), ("mean", rows.mean(0))):
            yield Comparison(f"{protocol} {name}", worst_relative(value, expected[protocol][name]), 1e-5)
        if not fixed:
            ratios = torch.stack([score.ratio for score in scores])
            yield Comparison(f"{protocol} ratios", worst_relative(ratios, expected[protocol]["ratios"]), 1e-5)
    disparity = torch.from_numpy(case["pred_disp/0"])
    blended = flip_post_process(disparity, 1.1 * disparity.flip(-1))
    yield Comparison("flip_post_process", worst_relative(blended, case["flip_post_process"][0]), 1e-5)


def compare_odometry(case: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """The 5-frame ATE and the scores under each alignment that the case has; relative, numbers of segments too."""
    expected = json.loads(bytes(case["expected"]))
    scores = score_trajectory(case["gt"], case["est"])
    found = {"frames": scores["frames"]}
    found |= {f"ate_5frame_{name}": scores["ate_5_frames"][f"{name}_m"] for name in ("mean", "std")}
    wanted = {name: value for name, value in expected.items() if name not in ALIGNMENTS}
    for alignment in expected.keys() & set(ALIGNMENTS):
        wanted |= {f"{alignment} {name}": value for name, value in expected[alignment].items()}
        found |= {f"{alignment} {name}": value for name, value in scores[alignment].items()}
    for name in sorted(wanted):
        yield Comparison(name, relative(found[name], wanted[name], SMALLEST_TERM), 1e-6)


def compare_lidar(case: dict[str, np.ndarray], kitti: Path) -> Iterator[Comparison]:
    """Depth maps from scans: the part of pixels that differ, in place or by more than 1e-4 m."""
    day = kitti / "2011_09_26"
    calibration = Calibration(day)
    for frame in sorted(int(key.split("/")[1]) for key in case if key.startswith("shape/")):
        expected = sparse_map(case[f"shape/{frame}"], case[f"index/{frame}"], case[f"depth/{frame}"])
        scan = day / "2011_09_26_drive_0013_sync" / "velodyne_points" / "data" / f"{frame:010d}.bin"
        depth = torch.from_numpy(lidar_depth(scan, calibration, "l"))
        wrong = ((depth > 0) != (expected > 0)) | ((depth - expected).abs() > 1e-4)
        yield Comparison(f"differing pixels of frame {frame}", float(wrong.sum() / (expected > 0).sum()), 1e-3)


def sparse_map(shape: np.ndarray, index: np.ndarray, values: np.ndarray) -> Tensor:
    """A map `[h, w]` of `shape` with `values` at the flat places `index`, 0 elsewhere."""
    result = np.zeros(shape, dtype=np.float32)
    result.ravel()[index] = values
    return torch.from_numpy(result)


def worst_relative(value: Tensor, expected: np.ndarray | list) -> float:
    """Largest difference relative to the expected value."""
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.float64)
    return float(((value.double() - expected).abs() / expected.abs()).max())


def compare_outputs(prediction: Prediction, case: dict[str, np.ndarray], config: Config) -> Iterator[Comparison]:
    """Outputs in evaluation mode against `eval/...`."""
    for scale, disparity in enumerate(prediction.disparities):
        yield Comparison(f"disparity {scale}", worst(disparity, case[f"eval/disp/0/{scale}"]), 1e-5)
    for position, frame in enumerate(config.data.frames[1:]):
        if frame != "s":
            error = worst(prediction.poses[:, position], case[f"eval/cam_T_cam/0/{frame}"])
            yield Comparison(f"pose {frame}", error, 1e-6)
    for scale, image in enumerate(prediction.reconstructions):
        yield Comparison(f"reconstruction {scale}", worst(image, case[f"eval/res_img/0/{scale}"]), 1e-5)


def compare_terms(terms: dict[str, Tensor], case: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """Each term as it is summed over scales against `loss/...`, relative."""
    for key in case:
        if key.startswith("loss/") and key != "loss/total":
            _, published, scale = key.split("/")
            values = terms[TERMS[published]].detach().mean(1)
            # What does not depend on the scale is computed once here and counted four times there.
            value = values[int(scale)] if len(values) > 1 else values[0] / 4
            yield Comparison(key, relative(float(value), float(case[key]), SMALLEST_TERM), 1e-4)
    total = sum(float(term.detach().sum(0).mean()) for term in terms.values())
    yield Comparison("loss/total", relative(total, float(case["loss/total"]), SMALLEST_TERM), 1e-4)


def compare_gradients(model: FeatDepth, terms: dict[str, Tensor], case: dict[str, np.ndarray]) -> Iterator[Comparison]:
    """L2 norms of the gradient of each term, and of their sum, for each network."""
    terms = terms | {"total": torch.stack(list(terms.values())).sum()}
    for published in sorted({key.split("/")[1] for key in case if key.startswith("grad_norm/")}):
        model.zero_grad(set_to_none=True)
        terms[TERMS.get(published, published)].backward(retain_graph=True)
        for key in case:
            if key.startswith(f"grad_norm/{published}/"):
                network = getattr(model, NETWORKS[key.split("/")[2]])
                yield Comparison(key, relative(gradient_norm(network), float(case[key]), 0.0), 1e-2)


def gradient_norm(network: nn.Module) -> float:
    """L2 norm of all gradients of a network, in float64."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())


def worst(value: Tensor, expected: np.ndarray) -> float:
    """Largest absolute difference."""
    return float((value - torch.from_numpy(expected)).abs().max())


def relative(value: float, expected: float, smallest: float) -> float:
    """Difference relative to `expected`, or to `smallest` where that is larger."""
    return abs(value - expected) / max(abs(expected), smallest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.npz")
    parser.add_argument("--kitti", type=Path, help="folder of KITTI raw data with the scans of the LiDAR case")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.cases:
        comparisons = compare(path, arguments.kitti)
        print(f"{path.name}: {len(comparisons)} quantities")
        for comparison in comparisons:
            verdict = "ok" if comparison.passed else "BEYOND TOLERANCE"
            print(f"  {comparison.quantity:<55} {comparison.error:10.2e}  of {comparison.tolerance:.0e}  {verdict}")
            failed += not comparison.passed
    print(f"{failed} beyond tolerance" if failed else "all within tolerance")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_program(main)
