"""The keys of a configuration: what can be set, its default and its unit."""

from __future__ import annotations

from dataclasses import dataclass, field

LAYERS = (18, 34, 50, 101)  # of the ResNets that are ours


@dataclass
class Run:
    name: str = "run"  # a plain file name
    directory: str | None = None  # everything the run writes; null: runs/<name>
    trackers: list[str] = field(default_factory=list)  # e.g. [tensorboard]; metrics.jsonl is always written

    def __post_init__(self) -> None:
        if self.directory is None:
            self.directory = f"runs/{self.name}"


@dataclass
class Data:
    kind: str = "kitti_raw"  # layout of the folder below `root`
    root: str = ""  # folder of the data set; has to be set
    split: str = "eigen"  # built in ("eigen", "official", "time"), or a folder with train_, val_ and test_files.txt
    train_files: str | None = None  # list file that takes the place of the split's training list
    val_files: str | None = None  # the same for validation
    test_files: str | None = None  # the same for test
    frames: list[int | str] = field(default_factory=lambda: [0, -1, 1, "s"])  # target 0, then sources; s: other camera
    height: int = 320  # pixels, multiple of 32: images are resized to height x width
    width: int = 1024  # pixels, multiple of 32
    crop: list[float] = field(default_factory=lambda: [0.0] * 4)  # parts cut off before: top, bottom, left, right
    field_of_view: float | None = None  # degrees, horizontal, of cameras whose intrinsics nothing else tells
    intrinsics: str = "calibration"  # "calibration": each drive's own; "fixed": one normalised K for everything
    flip: float = 0.5  # probability of mirroring a training sample
    colour_jitter: float = 0.5  # probability of colour jitter of a training sample
    workers: int = 4  # loader processes of each training process
    cache: str | None = None  # folder that keeps decoded frames (featdepth.data.cache); null: decode each time
    cache_gb: float | None = None  # GB at which nothing more is added to it; null: what leaves 1 GB of the disk free
    min_distance: float | None = (
        None  # metres to each neighbour in time: what moves less is neither trained nor validated on
    )
    min_motion: float | None = None  # the same in pixels at `width`, from the pictures (featdepth.data.motion)
    mix: list[str] = field(default_factory=list)  # configuration files whose data train along (featdepth.data.mix)
    mix_weights: list[float] | None = None  # how often own data and each of `mix` are drawn; null: by their samples
    prior: str | None = None  # folder with a map of depth for each frame, see loss.prior (docs/large_models.md)
    prior_kind: str | None = None  # what these are: depth, or disparity (inverse depth up to scale and shift)
    drive_balance: float = 0.0  # 0: all samples of a data set are drawn alike, 1: all drives, whatever their length
    ground_truth_cache: str | None = None  # folder for depth maps made from scans; null: chosen by the data set
    skip_bad_frames: bool = False  # replace unreadable samples and count them, instead of stopping
    allow_leakage: bool = False  # train on test drives; marks model and results CONTAMINATED


@dataclass
class Model:
    objective: str = "feature_metric"  # photometric | autoencoder | feature_metric | joint
    encoder: str | None = None  # of the depth network: a name of torchvision, or timm:NAME (docs/encoders.md)
    depth: str | None = None  # a large model in its place: hf:ORG/NAME or hf:DIRECTORY (docs/large_models.md)
    tune: str = "all"  # what of that learns: all, head, last:N (and N layers) or lora:R (low rank R, all else frozen)
    depth_layers: int | None = None  # the same by a ResNet's layers: 18, 34, 50 or 101; null: 50, where no encoder is
    motion: str = "network"  # between frames: network, aligned (computed, no pose network) or taught (network, by that)
    pose_layers: int = 18  # ResNet of the pose network
    feature_layers: int = 50  # ResNet of the feature autoencoder
    decoder_width: int = 256  # channels of the depth decoder
    dropout: float = 0.5  # probability, on the two deepest features of the depth decoder
    pretrained: bool | str = True  # encoders start from: true: ImageNet, false: random, text: weight file or folder
    feature_encoder: str | None = None  # model directory of stage 1 (objective autoencoder)
    pose_size: list[int] | None = field(default_factory=lambda: [192, 640])  # pixels [height, width]; null: as trained
    pose_start: str = "published"  # of a new pose decoder: published, or he, which learns motion some ten times faster
    init: str | None = None  # model directory to fine-tune
    intrinsics: str = "given"  # given: those of the data; learned: from data.field_of_view, or those of the data, on
    square_pixels: bool = True  # learned intrinsics have one focal length; false: one for each direction
    min_depth: float = 0.1  # network units
    max_depth: float = 100.0  # network units
    initial_depth: float | None = None  # network units, of everything before training; null: twice min_depth
    metres_per_unit: float | None = 36.0  # metres in one network unit, where training has some; null: up to scale

    def __post_init__(self) -> None:
        """Layers are known where depth has one of our ResNets, and only there."""
        if self.depth is not None:
            self.depth_layers = None
        elif self.depth_layers is None:
            named = {f"resnet{layers}": layers for layers in LAYERS}
            self.depth_layers = 50 if self.encoder is None else named.get(self.encoder)


@dataclass
class Loss:
    pyramid: bool = False  # compare coarse scales of depth on images as small, which helps where frames turn a lot
    automask: bool = False  # ignore pixels that the unwarped sources explain better
    identity_noise: float = 0.0  # standard deviation of the noise that breaks ties of the automask
    normalise_disparity: bool = False  # smoothness of disparity divided by its mean
    smoothness: float = 1e-3  # weight of the disparity's first- and second-order smoothness
    feature_metric: float = 1e-3  # weight of the feature-metric term
    discriminative: float = 1e-3  # weight that rewards first-order gradients of the features
    convergent: float = 1e-3  # weight that penalises second-order gradients of the features
    alignment: float = 0.1  # weight of the distance between pose network and alignment where model.motion is taught
    prior: float = 0.0  # weight of the agreement with a prior of depth, up to scale and shift; 0: there is none
    velocity: float = 0.0  # weight of the relative error of the distance that the camera moved; 0: distances not used


@dataclass
class Optimizer:
    lr: float = 1e-4  # learning rate after warm-up
    weight_decay: float = 0.0  # of Adam
    clip_norm: float | None = 35.0  # largest L2 norm of the gradient; null: no clipping


@dataclass
class Schedule:
    warmup_steps: int = 500  # optimizer steps of linear warm-up
    warmup_ratio: float = 0.3333  # first learning rate as a part of the full one
    milestones: list[int | float] = field(default_factory=lambda: [20, 30])  # epochs after which the rate drops
    gamma: float = 0.5  # factor at each milestone


@dataclass
class Train:
    epochs: int = 40
    max_steps: int | None = None  # optimizer steps at which to stop; 0: validate once and end
    batch_size: int = 2  # samples per process and forward pass
    accumulate: int = 1  # forward passes per optimizer step
    seed: int = 0
    log_every: int = 50  # optimizer steps
    checkpoint_every: int = 1000  # optimizer steps
    keep_checkpoints: int = 3  # newest checkpoints that are kept
    max_bad_steps: int = 20  # steps in a row whose loss or gradient is not finite: at so many the run ends
    timeout: int = 600  # seconds that a process waits for the others before it gives up
    gradient_checkpointing: bool = False  # less memory for more time: backward recomputes activations; same values
    panel_samples: int = 4  # validation samples shown in images/


@dataclass
class Evaluate:
    protocol: str = "eigen"  # "eigen": raw LiDAR; "eigen_improved": proj_depth/groundtruth; "own": other data sets'
    crop: str | None = None  # "garg", "cityscapes", "nyu" or "none"; null: what the field does (featdepth.kinds)
    cap: float | None = None  # metres: truth beyond it is ignored, predictions are clamped to it; null: as the field
    flip: bool = False  # average with the prediction of the mirrored image
    camera_height: float | None = None  # metres above the ground: scale from it; null: the model's own
    batch_size: int = 8  # images per process


@dataclass
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
