"""The model as a library: images in any form, the hub of Hugging Face, the card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from check_reference import reference_state
from hub_server import TOKEN, serve
from huggingface_hub import ModelCard
from PIL import Image
from tiny_models import HEIGHT, WIDTH, tiny_config, tiny_model

import featdepth
from featdepth.config import to_dict
from featdepth.errors import InputError
from featdepth.import_weights import convert
from featdepth.models import FeatDepth, build_model
from featdepth.models.saved.model_card import code, fenced, kinds_of_data
from featdepth.models.saved.provenance import Provenance

HOSTILE = "x`y\n# Title <script>alert(1)</script> | ```\n---\nlicense: mit\n[a](javascript:b)"
SCORES = dict.fromkeys(("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "silog"), 0.125)
EVALUATION = {"images": 697, "protocol": "eigen", "crop": "garg", "cap": 80.0, "flip": False, "contaminated": []}
EVALUATION |= {"data": "kitti_raw"}
EVALUATION |= {"median_scaled": SCORES, "fixed_scale": None}


@pytest.fixture(scope="module")
def model() -> FeatDepth:
    return tiny_model(tiny_config("photometric")).eval()


@pytest.fixture
def trained() -> FeatDepth:
    """A model that says of itself what one of train.py does."""
    config = tiny_config("photometric", [0, "s"])  # half as large as one with a pose network
    trained = tiny_model(config).eval()
    drives = ["2011_09_26/2011_09_26_drive_0001_sync", "2011_09_26/2011_09_26_drive_0002_sync"]
    trained.provenance.add_data(drives, [], ["kitti_raw"])
    trained.provenance.begin_training(to_dict(config), transductive=False)
    trained.provenance.add_validation({"epoch": 3, "step": 40, "loss": 0.0625, "abs_rel": 0.375, "a1": float("nan")})
    return trained


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_class_is_the_packages():
    assert featdepth.FeatDepth is FeatDepth


def test_every_form_of_an_image_gives_the_same_depth_in_its_own_form(model):
    image = pixels(50, 71)
    expected = model.predict_depth(as_tensor(image)[None])
    assert expected.shape == (1, 1, 50, 71)
    assert torch.equal(model.predict_depth(as_tensor(image)), expected[0])
    assert torch.equal(model.predict_depth(torch.from_numpy(image).permute(2, 0, 1)), expected[0])
    forms = (image, image.astype(np.float32) / 255, image.astype(np.float64) / 255, Image.fromarray(image))
    for given in (*forms, Image.fromarray(image).convert("RGBA"), np.ascontiguousarray(image[::-1])[::-1]):
        depth = model.predict_depth(given)
        assert isinstance(depth, np.ndarray) and depth.dtype == np.float32
        np.testing.assert_allclose(depth, expected[0, 0].numpy(), rtol=1e-4)
    hidden = Image.fromarray(np.dstack([image, np.zeros_like(image[..., 0])]))
    assert np.array_equal(model.predict_depth(hidden), model.predict_depth(np.full_like(image, 255)))
    grey = Image.fromarray(image).convert("L")
    assert np.array_equal(model.predict_depth(grey), model.predict_depth(np.array(grey.convert("RGB"))))


def test_a_list_may_have_several_sizes_and_forms(model):
    images = [pixels(50, 71), Image.fromarray(pixels(80, 64, 1)), as_tensor(pixels(HEIGHT, WIDTH, 2))]
    depths = model.predict_depth(images)
    assert [depth.shape for depth in depths] == [(50, 71), (80, 64), (1, HEIGHT, WIDTH)]
    for depth, image in zip(depths, images, strict=True):
        assert np.array_equal(depth, model.predict_depth(image))
    assert model.predict_depth([]) == []


def test_arrays_that_must_not_be_written_to_stay_as_they_are(model):
    image = pixels(50, 71)
    image.setflags(write=False)
    before = image.copy()
    model.predict_depth(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "given, said",
    [
        (np.zeros((50, 71), np.uint8), r"array \[50, 71\]"),
        (np.zeros((3, 50, 71), np.uint8), r"array \[3, 50, 71\]"),
        (np.zeros((50, 71, 3), np.int64), "int64"),
        (np.full((50, 71, 3), 255.0), "from 255 to 255"),
        (np.full((50, 71, 3), np.nan), "nan"),
        (np.zeros((0, 71, 3), np.uint8), "without pixels"),
        (torch.zeros(50, 71), r"tensor \[50, 71\]"),
        (torch.zeros(1, 1, 50, 71), r"tensor \[1, 1, 50, 71\]"),
        (torch.zeros(3, 50, 71, dtype=torch.int32), "int32"),
        (torch.full((3, 50, 71), -1.0), "from -1 to -1"),
        (torch.zeros(0, 3, 50, 71), "without pixels"),
        (Image.new("I;16", (71, 50)), "I;16"),
        (Image.new("F", (71, 50)), "mode F"),
        ("image.png", "str"),
    ],
)
def test_what_is_no_rgb_image_is_refused_and_the_message_says_what_is_expected(model, given, said):
    with pytest.raises(ValueError, match=said) as caught:
        model.predict_depth(given)
    assert "[N, 3, H, W]" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_features_says_that_it_predicts_no_depth():
    with pytest.raises(ValueError, match="autoencoder predicts no depth"):
        tiny_model(tiny_config("autoencoder", [0])).predict_depth(pixels(50, 71))


def test_prediction_is_in_evaluation_mode_and_leaves_each_part_in_its_own():
    model = tiny_model(tiny_config("feature_metric")).train()
    model.depth_encoder.bn1.eval()
    modes, state = [each.training for each in model.modules()], model.depth_encoder.bn1.running_mean.clone()
    image = as_tensor(pixels(HEIGHT, WIDTH))[None]
    depth = model.predict_depth(image)
    assert [each.training for each in model.modules()] == modes and any(modes) and not all(modes)
    assert torch.equal(model.depth_encoder.bn1.running_mean, state)
    assert torch.equal(model.eval().predict_depth(image), depth) and not depth.requires_grad
    with pytest.raises(ValueError):
        model.train().predict_depth("image.png")
    assert model.training


def test_half_precision_models_take_the_same_images(model):
    half = FeatDepth.from_state(tiny_config("photometric"), model.state_dict(), "here").bfloat16()
    depth = half.predict_depth(pixels(HEIGHT, WIDTH))
    np.testing.assert_allclose(np.log(depth), np.log(model.predict_depth(pixels(HEIGHT, WIDTH))), atol=0.1)


def test_a_model_goes_to_the_hub_and_comes_back(trained, tmp_path):
    with serve(tmp_path / "cache") as hub:
        url = trained.push_to_hub("me/street", token=TOKEN, private=True)
        files = hub.files("me/street", "main")
        assert sorted(files) == ["README.md", "config.json", "model.safetensors"] and "/me/street/commit/" in url
        trained.save_pretrained(tmp_path / "street")
        assert all((tmp_path / "street" / name).read_bytes() == data for name, data in files.items())
        assert [front_matter(card)["library_name"] for card in hub.cards] == ["featdepth"]
        assert hub.private == {"me/street"}

        again = FeatDepth.from_pretrained("me/street", token=TOKEN)
        assert not again.training and again.provenance == trained.provenance
        assert np.array_equal(again.predict_depth(pixels(50, 71)), trained.predict_depth(pixels(50, 71)))
        hub.requests.clear()
        FeatDepth.from_pretrained("me/street", local_files_only=True)
        assert hub.requests == []

        # Another version; the first one stays to be had, from the hash in its URL.
        trained.provenance.add_data(["elsewhere"], [])
        trained.save_pretrained(tmp_path / "street", push_to_hub=True, repo_id="me/street", token=TOKEN)
        old = FeatDepth.from_pretrained("me/street", token=TOKEN, revision=url.split("/")[-1])
        new = FeatDepth.from_pretrained("me/street", token=TOKEN)
        assert "elsewhere" not in old.provenance.drives and "elsewhere" in new.provenance.drives

        for name, options, said in (
            ("me/nothing", {}, "there is none of this name, or it is private"),
            ("me/street", {"cache_dir": tmp_path / "other"}, "there is none of this name, or it is private"),
            ("me/street", {"token": TOKEN, "revision": "v9"}, "no such revision"),
            ("me/street", {"local_files_only": True, "cache_dir": tmp_path / "other"}, "not downloaded before"),
            ("me/two words", {}, "me/two words"),
        ):
            with pytest.raises(InputError, match=said) as caught:
                FeatDepth.from_pretrained(name, **options)
            assert "\n" not in str(caught.value) and str(caught.value).startswith(name)
        for name, options in (("me/street", {"token": "wrong"}), ("me/street", {}), ("me/two words", {"token": TOKEN})):
            with pytest.raises(InputError, match=f"{name}: the model could not be uploaded") as caught:
                trained.push_to_hub(name, **options)
            assert "\n" not in str(caught.value)
    # The hub is gone: what was downloaded still loads, anything else is one line.
    with pytest.raises(InputError, match=r"me/other: .*the hub cannot be reached"):
        FeatDepth.from_pretrained("me/other", cache_dir=tmp_path / "cache")


def test_arguments_that_nobody_takes_are_errors(model, tmp_path):
    with pytest.raises(TypeError, match="colour"):
        model.push_to_hub("me/street", colour="red")
    with pytest.raises(ValueError, match="own configuration"):
        model.save_pretrained(tmp_path / "model", config={"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_the_model_is_and_has_seen(trained, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(EVALUATION))
    trained.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluation": tmp_path / "evaluation"})
    card = (tmp_path / "model" / "README.md").read_text()
    head = front_matter(card)
    assert head["license"] == "apache-2.0" and head["datasets"] == ["kitti_raw"]
    assert head["pipeline_tag"] == "depth-estimation" and head["library_name"] == "featdepth"
    for said in (
        "KITTI: CC BY-NC-SA 3.0",
        "2 drives: `2011_09_26/2011_09_26_drive_0001_sync`",
        "64 x 96 pixels",
        "metres (stereo baseline)",
        "| `abs_rel` | 0.375 |",
        "697 images, protocol `eigen`, crop `garg`, cap 80 m, flip off",
        "| median-scaled | 0.1250 |",
        "FeatDepth.from_pretrained",
    ):
        assert said in card, said
    assert "CONTAMINATED" not in card and "TRANSDUCTIVE" not in card and "`a1`" not in card
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert yaml.safe_load(block) == to_dict(tiny_config("photometric", [0, "s"]))
    # What was loaded says the same of itself, but for scores that its weights may have grown out of.
    again = str(FeatDepth.from_pretrained(tmp_path / "model").generate_model_card())
    assert again == str(trained.generate_model_card()) != card


def listed(path: Path) -> list[tuple]:
    """The scores that the hub's own parser finds in a card."""
    data = ModelCard.load(path, ignore_metadata_errors=False).data
    assert ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict() == data.to_dict()
    named = ("dataset_type", "dataset_name", "dataset_split", "metric_type", "metric_name", "metric_value")
    return [tuple(getattr(each, name) for name in named) for each in data.eval_results or ()]


def test_the_hub_lists_the_scores_of_a_card(trained, tmp_path):
    """Those of a model that has seen what it is tested on, and those on data without a name, are not listed."""
    (tmp_path / "metrics.json").write_text(json.dumps(EVALUATION | {"fixed_scale": {**SCORES, "abs_rel": 0.25}}))
    card = tmp_path / "model" / "README.md"
    trained.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluation": tmp_path})
    about = ("kitti_raw", "KITTI")
    validation = [
        (*about, "validation", "loss", "loss without gradient", 0.0625),
        (*about, "validation", "abs_rel", "abs_rel, median-scaled", 0.375),
    ]
    found = listed(card)
    assert found[:2] == validation and len(found) == 2 + 2 * len(SCORES)
    assert (*about, "test", "abs_rel", "abs_rel, median-scaled", SCORES["abs_rel"]) in found
    assert (*about, "test", "abs_rel", "abs_rel, fixed scale", 0.25) in found
    arguments = ModelCard.load(card).data.eval_results[-1].dataset_args
    assert arguments == {"protocol": "eigen", "crop": "garg", "cap": 80.0, "flip": False}
    (tmp_path / "metrics.json").write_text(json.dumps(EVALUATION | {"data": HOSTILE, "crop": HOSTILE}))
    trained.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluation": tmp_path})
    assert listed(card) == validation
    (tmp_path / "metrics.json").write_text(json.dumps(EVALUATION | {"contaminated": ["a"]}))
    trained.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluation": tmp_path})
    assert listed(card) == validation


def test_contaminated_and_transductive_models_say_so_before_anything_else(trained):
    trained.provenance.add_data([], ["drive_a"])
    trained.provenance.begin_training({}, transductive=True)
    card = str(trained.generate_model_card())
    assert card.index("CONTAMINATED") < card.index("TRANSDUCTIVE") < card.index("## Use")
    assert "`drive_a`" in card


def test_names_of_others_cannot_change_the_card():
    model = tiny_model(tiny_config("photometric"))
    model.provenance.add_data([HOSTILE], [HOSTILE], [HOSTILE])
    model.provenance.begin_training({"data": {"root": HOSTILE}}, transductive=False)
    model.provenance.add_validation({HOSTILE: 1.0})
    model.provenance.imported_from, model.provenance.versions = HOSTILE, [HOSTILE]
    card = str(model.generate_model_card())
    assert front_matter(card)["license"] == "apache-2.0" and "datasets" not in front_matter(card)
    text = card.split("\n---\n", 1)[1]
    # Without its code nothing of the name is left.
    plain = re.sub(r"(?ms)^(`{3,})yaml\n.*?^\1$", "", text)
    plain = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", plain)
    assert "script" not in plain and "javascript" not in plain and "# Title" not in plain
    (block,) = re.findall(r"(?ms)^`{4,}yaml\n(.*?)^`{4,}$", text)
    assert yaml.safe_load(block) == {"data": {"root": HOSTILE}}


def test_code_in_markdown_holds_anything():
    assert code("a") == "`a`" and code("a`b") == "`` a`b ``" and code("a\nb\x00c") == "`a b c`" and code("") == "` `"
    assert fenced("a\n", "yaml") == "```yaml\na\n```" and fenced("````\n", "yaml") == "`````yaml\n````\n`````"


def test_scale_and_features_are_told_apart():
    monocular = tiny_model(tiny_config("photometric", [0, 1], metres_per_unit=None))
    assert "up to scale; nothing in its training knew" in str(monocular.generate_model_card())
    features = str(tiny_model(tiny_config("autoencoder", [0])).generate_model_card())
    assert "predicts no depth" in features and "predict_depth" not in features


def test_the_synthetic_street_is_not_taken_for_kitti():
    street = ["2031_09_26/2031_09_26_drive_0001_sync"]
    assert kinds_of_data(Provenance(drives=street, kinds=["kitti_raw"])) == ["synthetic"]
    assert kinds_of_data(Provenance(drives=street)) == ["synthetic"]
    mixed = Provenance(drives=[*street, "2011_09_26/2011_09_26_drive_0001_sync"], kinds=["kitti_raw"])
    assert kinds_of_data(mixed) == ["kitti_raw"] and kinds_of_data(Provenance()) == []


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"no_ground_truth": "nothing"}', '{"images": 3}'])
def test_an_evaluation_without_scores_is_refused_and_nothing_is_written(model, tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"metrics\.json"):
        model.save_pretrained(tmp_path / "model", model_card_kwargs={"evaluation": tmp_path})
    assert sorted(tmp_path.iterdir()) == before


def test_a_later_stage_remembers_the_data_of_the_first(tmp_path):
    first = tiny_model(tiny_config("autoencoder", [0]))
    first.provenance.add_data([], [], ["cityscapes"])
    first.provenance.begin_training({}, transductive=True)
    first.save_pretrained(tmp_path / "first")
    second = build_model(tiny_config("feature_metric", feature_encoder=str(tmp_path / "first")))
    second.provenance.add_data([], [], ["kitti_raw"])
    assert second.provenance.kinds == ["cityscapes", "kitti_raw"]
    assert second.provenance.transductive is second.provenance.configuration is None


def test_a_run_leaves_a_card_of_its_own(finished_run: Path):
    for name in ("model", "model_last"):
        model = FeatDepth.from_pretrained(finished_run / name)
        record = model.provenance
        card = (finished_run / name / "README.md").read_text()
        assert record.kinds == ["kitti_raw"] and "the synthetic street of featdepth" in card
        assert record.transductive is False and record.configuration["train"]["max_steps"] == 6
        lines = map(json.loads, (finished_run / "metrics.jsonl").read_text().splitlines())
        validations = [line for line in lines if line["split"] == "validation"]
        assert record.validation["loss"] in [line["loss"] for line in validations]
        assert f"| `loss` | {record.validation['loss']:.4g} |" in card and "## Configuration" in card


@pytest.mark.usefixtures("whole_resnet18")
@pytest.mark.parametrize("name, unit", [("featdepth_mono_r50", 36.0), ("featdepth_joint_r50", None)])
def test_published_checkpoints_serve_as_our_own(name, unit, tmp_path):
    imported = convert(reference_state(Path(__file__).parent / "data" / f"{name}.npz"), HEIGHT, WIDTH, unit)
    imported.provenance.imported_from = "published.pth"
    imported.save_pretrained(tmp_path / "model")
    again = FeatDepth.from_pretrained(tmp_path / "model")
    image = pixels(50, 71)
    depth = again.predict_depth(Image.fromarray(image))
    assert depth.shape == (50, 71) and np.isfinite(depth).all() and depth.min() > 0
    assert np.array_equal(depth, imported.predict_depth(image))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "imported from a published checkpoint, `published.pth`; its data are not recorded" in card
    assert ("metres (stereo baseline)" if unit else "up to scale") in card and "not recorded" in card
