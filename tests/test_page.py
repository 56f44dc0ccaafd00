"""The page of predictions: what is in the file, and that a browser draws it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featdepth.errors import InputError
from featdepth.predict.page import MOST_POINTS, MOST_SHOWN, PageFrame, spread, write_page
from featdepth.predict.point_cloud import PointCloud, depth_to_points

HOSTILE = '<script>document.title="owned"</script>{{data}}</title>&"\'.png'
INTRINSICS = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.is_open = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            self.texts[-1] += data

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of all elements of a kind."""
        return [
            (attributes, text)
            for (name, attributes), text in zip(self.elements, self.texts, strict=True)
            if name == tag
        ]

    def data(self) -> dict:
        """What the script is given."""
        (text,) = (text for attributes, text in self.all("script") if attributes.get("type") == "application/json")
        return json.loads(text)


def scene(count: int = 3) -> list[PageFrame]:
    """Frames of a wall with a box before it."""
    rng = np.random.default_rng(0)
    depth = np.full((48, 64), 8.0)
    depth[20:40, 24:44] = 4.0
    frames = []
    for index in range(count):
        image = rng.integers(60, 256, (48, 64, 3), dtype=np.uint8)
        cloud = depth_to_points(depth, image, INTRINSICS, grazing_angle=None)
        frames.append(PageFrame(f"{index} {HOSTILE}", image, image[::-1], cloud, index))
    return frames


def way(count: int) -> np.ndarray:
    """world_from_camera `[count, 4, 4]`: straight on in a world that the first camera is not the origin of."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 2, 3] = 7 + 0.5 * np.arange(count)
    return poses


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "new" / "index.html"
    frames = scene()
    write_page(file, HOSTILE, frames, "stereo baseline", frames[0].cloud, way(3), ["A note <b>."])
    return file


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    content = Page(page)
    for _, attributes in content.elements:
        assert "srcset" not in attributes and "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_only_the_script_and_the_style_of_the_page_may_run(page: Path) -> None:
    content = Page(page)
    (policy,) = (each["content"] for each, _ in content.all("meta") if each.get("http-equiv"))
    ((_, style),) = content.all("style")
    (script,) = (text for attributes, text in content.all("script") if "type" not in attributes)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_names_are_text_whatever_they_hold(page: Path) -> None:
    content = Page(page)
    assert len(content.all("script")) == 2 and len(content.all("title")) == 1
    assert content.all("title")[0][1] == HOSTILE
    data = content.data()
    assert data["title"] == HOSTILE and data["frames"][1]["name"] == f"1 {HOSTILE}" and data["notes"] == ["A note <b>."]


def test_pictures_points_and_poses_survive_their_coding(page: Path) -> None:
    frames, data = scene(), Page(page).data()
    assert data["statement"] == "Distances are in metres (scale: stereo baseline)." and data["metres"] is True
    picture = Image.open(io.BytesIO(base64.b64decode(data["frames"][0]["image"].partition(",")[2])))
    assert picture.format == "JPEG" and picture.size == (64, 48)
    assert np.abs(np.asarray(picture).astype(int) - frames[0].image).mean() < 40
    for stored, cloud in ((data["frames"][2]["cloud"], frames[2].cloud), (data["cloud"], frames[0].cloud)):
        points, colours = stored_cloud(stored)
        np.testing.assert_allclose(points, cloud.points, atol=np.ptp(cloud.points) / 65535)
        np.testing.assert_array_equal(colours, cloud.colours)
    np.testing.assert_allclose(data["trajectory"], [[0, 0, 0], [0, 0, 0.5], [0, 0, 1]])
    np.testing.assert_allclose(data["frames"][2]["pose"], [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1])


def stored_cloud(stored: dict) -> tuple[np.ndarray, np.ndarray]:
    """Points and colours of a cloud as the script reads them."""
    points = np.frombuffer(base64.b64decode(stored["points"]), "<u2").reshape(-1, 3)
    return stored["low"] + points * stored["step"], np.frombuffer(base64.b64decode(stored["colours"]), "u1").reshape(
        -1, 3
    )


def test_limits_are_kept_and_said(tmp_path: Path) -> None:
    frame = scene(1)[0]
    large = PointCloud(np.random.default_rng(0).normal(size=(70_000, 3)).astype("f4"), np.zeros((70_000, 3), np.uint8))
    frames = [frame._replace(name=str(index), cloud=large, index=index) for index in range(100)]
    write_page(tmp_path / "index.html", "many", frames, None, large, way(6000), total=6000)
    data = Page(tmp_path / "index.html").data()
    assert len(data["frames"]) == MOST_SHOWN and [data["frames"][end]["name"] for end in (0, -1)] == ["0", "99"]
    assert data["cloud"]["count"] == MOST_POINTS and {each["cloud"]["count"] for each in data["frames"]} == {10_000}
    assert data["statement"].startswith("Distances are relative") and data["metres"] is False
    assert data["notes"] == [
        "60 of 6000 frames are shown.",
        "The point cloud of a frame is thinned to 10000 points.",
        "60000 of the 70000 points of the fused cloud are shown.",
        "5000 of 6000 camera positions are shown.",
    ]


def test_places_are_spread_from_the_first_to_the_last() -> None:
    np.testing.assert_array_equal(spread(5, 10), range(5))
    np.testing.assert_array_equal(spread(1, 10), [0])
    places = spread(1000, 7)
    assert len(places) == 7 and places[0] == 0 and places[-1] == 999


def test_wide_pictures_are_made_smaller(tmp_path: Path) -> None:
    picture = np.zeros((300, 1280, 3), np.uint8)
    write_page(tmp_path / "index.html", "wide", [PageFrame("wide", picture, picture)], None)
    (frame,) = Page(tmp_path / "index.html").data()["frames"]
    assert Image.open(io.BytesIO(base64.b64decode(frame["depth"].partition(",")[2]))).size == (640, 150)
    assert frame["cloud"] is None and frame["pose"] is None


def test_a_page_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one frame"):
        write_page(tmp_path / "index.html", "none", [], None)


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")


def browse(page: Path, address: str, folder: Path, *options: str) -> str:
    """What a new headless browser writes when it opens the page at `address`, e.g. "#yaw=30"."""
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", "--window-size=900,700"]
    command += ["--virtual-time-budget=3000", *options, f"{page.as_uri()}{address}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        shutil.rmtree(folder / "profile", ignore_errors=True)


def screenshot(page: Path, address: str, folder: Path) -> np.ndarray:
    """The page as the browser shows it, uint8 `[h, w, 3]`."""
    file = folder / "screenshot.png"
    browse(page, address, folder, f"--screenshot={file}")
    return np.array(Image.open(file).convert("RGB"))


@needs_browser
def test_a_browser_draws_the_cloud_and_shows_names_as_text(page: Path, tmp_path: Path) -> None:
    document = browse(page, "#cloud=frame&frame=2", tmp_path, "--dump-dom")
    (root,) = re.findall(r"<html[^>]*>", document)
    assert 'data-state="ready"' in root and f'data-points="{48 * 64}"' in root
    assert int(re.search(r'data-drawn="(\d+)"', root)[1]) > 1500
    assert (
        "2 of 3: 1 &lt;script&gt;" in document
        and "owned" not in document.partition("<body>")[0].partition("<title>")[0]
    )
    assert len(re.findall("<script", document)) == 2
    assert 'src="data:image/jpeg' in document


@needs_browser
def test_turning_the_view_changes_the_picture(page: Path, tmp_path: Path) -> None:
    front = screenshot(page, "#cloud=frame&view=camera", tmp_path)
    turned = screenshot(page, "#cloud=frame&view=camera&yaw=40&pitch=20", tmp_path)
    # The colours of the images are random, those around them are a handful.
    assert len(np.unique(front.reshape(-1, 3), axis=0)) > 2000
    assert (front != turned).any(-1).mean() > 0.05
