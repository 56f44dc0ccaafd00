"""The cache of decoded frames: same frames as without it, whatever happens to sources, cache, disk and processes."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Result, call_program, program_environment, run_program_process, succeeded
from kitti_tree import SIZE, drive_name, make_config, write_calibration, write_drive, write_list
from PIL import Image
from run_records import differences
from torch.utils.data import DataLoader

import train
from featdepth.config import Config, save_config
from featdepth.data import build_dataset, images
from featdepth.data import cache as program
from featdepth.data.cached import frame_cache
from featdepth.data.cached.frame_cache import FrameCache
from featdepth.data.cached.shards import VERSION, FrameIdentity, ShardWriter, read_shard, size_folder, used_bytes
from featdepth.data.images import load_image
from featdepth.errors import InputError

DRIVE = drive_name(1)
SMALL = (64, 96)
FRAME_BYTES = 3 * 64 * 96
FRAMES = range(10, 22)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A drive of twelve frames with both cameras, most of them for training, and one to validate."""
    write_calibration(tmp_path / "raw")
    write_drive(tmp_path / "raw", DRIVE, FRAMES)
    write_drive(tmp_path / "raw", drive_name(2), range(30, 33))
    write_list(tmp_path / "split" / "train_files.txt", [f"{DRIVE} {frame} l" for frame in FRAMES])
    write_list(tmp_path / "split" / "val_files.txt", [f"{drive_name(2)} 31 l"])
    return tmp_path


def image_paths(tree: Path) -> list[Path]:
    return sorted((tree / "raw" / DRIVE / "image_02" / "data").iterdir())


def plain_config(tree: Path, **data: object) -> Config:
    return make_config(tree, **{"height": SMALL[0], "width": SMALL[1], **data})


def cached_config(tree: Path, **data: object) -> Config:
    return plain_config(tree, **{"cache": str(tree / "frames"), **data})


def open_cache(tree: Path, limit: float | None = None) -> FrameCache:
    return FrameCache(tree / "frames", SMALL, limit)


def shards(tree: Path, suffix: str = ".frames") -> list[Path]:
    return sorted((tree / "frames").rglob(f"*{suffix}"))


def frames_in(tree: Path) -> int:
    """Lines of all indices."""
    return sum(len(path.read_text().splitlines()) for path in shards(tree, ".index"))


def fill(tree: Path) -> list[Path]:
    """Cache all frames of the left camera; their paths."""
    cache = open_cache(tree)
    for path in image_paths(tree):
        cache.load(path, SIZE)
    return image_paths(tree)


def run_cache(tree: Path, *options: object, **data: object) -> Result:
    """The program, in this process."""
    save_config(cached_config(tree, **data), tree / "config.yaml")
    return call_program(program.main, "--config", tree / "config.yaml", *options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names: list[str] = []

    def load(path: str | Path, *arguments: object) -> torch.Tensor:
        names.append(Path(path).name)
        return load_image(path, *arguments)

    monkeypatch.setattr(frame_cache, "load_image", load)
    monkeypatch.setattr(images, "load_image", load)
    images.load_recent_image.cache_clear()
    return names


def assert_same_frames(tree: Path, cache: FrameCache) -> None:
    for path in image_paths(tree):
        assert torch.equal(cache.load(path, SIZE), load_image(path, SMALL, SIZE))


class TestFrames:
    def test_are_decoded_once_and_the_same_as_without_a_cache(self, tree: Path, decoded: list[str]) -> None:
        assert_same_frames(tree, open_cache(tree))
        assert len(decoded) == len(FRAMES)
        again = open_cache(tree)
        assert len(again) == len(FRAMES)
        assert_same_frames(tree, again)
        assert_same_frames(tree, again)
        assert len(decoded) == len(FRAMES) == frames_in(tree)

    def test_are_copies(self, tree: Path) -> None:
        (path, *_) = fill(tree)
        cache = open_cache(tree)
        cache.load(path, SIZE).fill_(0)
        assert torch.equal(cache.load(path, SIZE), load_image(path, SMALL, SIZE))

    def test_added_by_one_are_found_by_another(self, tree: Path, decoded: list[str]) -> None:
        one, other = open_cache(tree), open_cache(tree)
        for path in image_paths(tree):
            one.load(path, SIZE)
        assert_same_frames(tree, other)
        assert len(decoded) == len(FRAMES)

    def test_of_a_changed_file_are_decoded_again(self, tree: Path) -> None:
        first, second, *_ = fill(tree)
        cache = open_cache(tree)
        state = first.stat()
        stripes = np.full((*SIZE, 3), 200, np.uint8)
        stripes[::2] = 202
        Image.fromarray(stripes).save(first)  # another size in bytes
        os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert cache.load(first, SIZE).float().mean() == pytest.approx(201, abs=1)
        content = second.read_bytes()
        second.write_bytes(content)  # another time of change
        os.utime(second, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert not cache.holds(second, SIZE)
        assert torch.equal(cache.load(second, SIZE), load_image(second, SMALL, SIZE)) and cache.holds(second, SIZE)

    def test_of_other_sizes_have_their_own_places(self, tree: Path) -> None:
        (path, *_) = fill(tree)
        larger = FrameCache(tree / "frames", (64, 192))
        assert len(larger) == 0
        assert torch.equal(larger.load(path, SIZE), load_image(path, (64, 192), SIZE))
        folders = {folder.name for folder in (tree / "frames").iterdir()}
        assert folders == {f"64x96-triangle-{VERSION}", f"64x192-triangle-{VERSION}"}

    def test_of_other_crops_have_their_own_places(self, tree: Path, decoded: list[str]) -> None:
        crops = ([0.0, 0.0, 0.0, 0.0], [0.1, 0.25, 0.25, 0.0])
        plain = [build_dataset(plain_config(tree, crop=crop), "train")[0]["images"] for crop in crops]
        assert not torch.equal(*plain)
        for _ in range(2):
            cached = [build_dataset(cached_config(tree, crop=crop), "train")[0]["images"] for crop in crops]
            assert all(map(torch.equal, cached, plain))
        assert len(decoded) == 2 * 3
        program.check(tree / "frames")
        program.shrink(tree / "frames", None)
        assert frames_in(tree) == 2 * 3

    def test_are_refused_where_the_file_would_be(self, tree: Path) -> None:
        first, second, *_ = fill(tree)
        cache = open_cache(tree)
        with pytest.raises(InputError, match="120 x 40 pixels, but its camera's images have 121 x 40"):
            cache.load(first, (40, 121))
        second.unlink()
        with pytest.raises(InputError, match=f"{second.name}: the image cannot be read: No such file"):
            cache.load(second, SIZE)

    def test_with_odd_names_are_found_again(self, tree: Path, decoded: list[str]) -> None:
        odd = tree / os.fsdecode(b'new\nline "\xff\xe9.png')
        odd.write_bytes(image_paths(tree)[0].read_bytes())
        open_cache(tree).load(odd, SIZE)
        assert torch.equal(open_cache(tree).load(odd, SIZE), load_image(odd, SMALL, SIZE))
        assert len(decoded) == 1


class TestDamage:
    @pytest.mark.parametrize("suffix", [".frames", ".index"])
    def test_is_noticed_and_mended(self, tree: Path, suffix: str, decoded: list[str]) -> None:
        fill(tree)
        (path,) = shards(tree, suffix)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        decoded.clear()
        for _ in range(3):  # each knows of both copies
            assert_same_frames(tree, open_cache(tree))
        assert len(decoded) == 1

    @pytest.mark.parametrize("suffix", [".frames", ".index"])
    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
    def test_of_a_cut_file_costs_what_was_cut(self, tree: Path, suffix: str, kept: float, decoded: list[str]) -> None:
        fill(tree)
        (path,) = shards(tree, suffix)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        decoded.clear()
        assert_same_frames(tree, open_cache(tree))
        assert len(decoded) == len(FRAMES) - int(kept * len(FRAMES))

    def test_of_a_removed_shard_is_decoded_again_by_who_knew_it(self, tree: Path, decoded: list[str]) -> None:
        fill(tree)
        knowing = open_cache(tree)
        for path in (tree / "frames").rglob("*.*"):
            path.unlink()
        decoded.clear()
        assert_same_frames(tree, knowing)
        assert len(decoded) == len(FRAMES)

    def test_of_all_kinds_is_counted_and_dropped_by_the_program(self, tree: Path) -> None:
        paths = fill(tree)
        paths[0].write_bytes(paths[0].read_bytes() + b" ")  # changed
        paths[1].unlink()  # gone
        for index in shards(tree, ".index"):  # twice
            copy = index.with_name("0123456789abcdef.index")
            copy.write_bytes(index.read_bytes())
            copy.with_suffix(".frames").write_bytes(index.with_suffix(".frames").read_bytes())
        content = bytearray(copy.with_suffix(".frames").read_bytes())
        content[-1] ^= 255  # damaged
        copy.with_suffix(".frames").write_bytes(content)
        (copy.parent / "fedcba9876543210.frames").write_bytes(b"left by an interrupted removal")
        foreign = [tree / "frames" / "notes.txt", copy.parent / "readme.index", tree / "frames" / "mine" / "a.frames"]
        foreign[2].parent.mkdir()
        for path in foreign:
            path.write_text("not the cache's")
        old = tree / "frames" / "64x96-triangle-0"
        old.mkdir()
        (old / "aaaaaaaaaaaaaaaa.index").write_text(f'00000000 ["{paths[2]}", 1, 2, 40, 120]\n')
        (old / "aaaaaaaaaaaaaaaa.frames").write_bytes(bytes(FRAME_BYTES))

        result = run_cache(tree, "--check")
        assert "2 damaged frames" not in result.out and f"64x96-triangle-{VERSION}: 1 damaged, 9 double" in result.out
        assert "10 good, 4 out of date" in result.out
        assert "2 damaged frames" in result.error_line()  # one of them of version 0

        result = succeeded(run_cache(tree, "--shrink"))
        assert "10 frames kept; dropped: 1 damaged, 9 double, 1 of another version, 4 out of date" in result.out
        result = succeeded(run_cache(tree, "--check"))
        assert f"64x96-triangle-{VERSION}: 10 good\n" in result.out and "64x96-triangle-0: none\n" in result.out
        assert all(path.read_text() == "not the cache's" for path in foreign)
        assert not (copy.parent / "fedcba9876543210.frames").exists()
        before = shards(tree)
        assert "10 frames kept; dropped: none" in succeeded(run_cache(tree, "--shrink")).out
        assert shards(tree) == before  # what is whole is left as it is


class TestSize:
    def test_stays_below_its_limit(self, tree: Path, decoded: list[str]) -> None:
        limit = 5.5 * FRAME_BYTES / 1e9
        cache = open_cache(tree, limit)
        assert_same_frames(tree, cache)
        assert frames_in(tree) == 5 and used_bytes(tree / "frames") <= limit * 1e9
        assert_same_frames(tree, cache)
        assert len(decoded) == 12 + 7
        data = build_dataset(cached_config(tree, cache_gb=limit), "train")
        assert "5 frames in" in data.describe() and "12 needed" in data.describe()
        assert "room for 0 more, the rest is decoded each time" in data.describe()

    def test_is_that_of_all_frames_in_the_folder(self, tree: Path) -> None:
        fill(tree)
        other = FrameCache(tree / "frames", (64, 192), limit=12.5 * FRAME_BYTES / 1e9)
        other.load(image_paths(tree)[0], SIZE)
        assert len(open_cache(tree)) == 12 and not list(other.folder.iterdir())

    def test_leaves_room_on_the_disk(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(frame_cache, "SPARED_BYTES", 1 << 60)
        assert_same_frames(tree, open_cache(tree))
        assert not shards(tree)
        assert "room for 0 more" in build_dataset(cached_config(tree), "train").describe()

    @pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
    def test_ends_where_the_disk_is_full(
        self, tree: Path, reason: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        written, write = [], os.write

        def until_full(handle: int, content: memoryview) -> int:
            written.append(handle)
            if len(written) == 8:
                return write(handle, content[: len(content) // 2])
            if len(written) > 8:
                raise OSError(reason, os.strerror(reason))
            return write(handle, content)

        cache = open_cache(tree)
        monkeypatch.setattr(os, "write", until_full)
        assert_same_frames(tree, cache)
        assert capsys.readouterr().err.count("the disk is full, no more frames are cached") == 1
        monkeypatch.undo()
        (frames,), (index,) = shards(tree), shards(tree, ".index")
        assert frames.stat().st_size == 3 * FRAME_BYTES and len(index.read_bytes().splitlines()) == 3
        assert_same_frames(tree, open_cache(tree))

    def test_shrinks_to_a_limit_and_keeps_the_newest(self, tree: Path) -> None:
        paths = image_paths(tree)
        for part in (paths[:6], paths[6:]):
            cache = open_cache(tree)
            for path in part:
                cache.load(path, SIZE)
            time.sleep(0.02)
        room = f"{8.5 * FRAME_BYTES / 1e9:.9f}"
        assert "8 frames kept; dropped: 4 beyond the limit" in succeeded(run_cache(tree, "--shrink", room)).out
        cache = open_cache(tree)
        assert [cache.holds(path, SIZE) for path in paths] == [True] * 2 + [False] * 4 + [True] * 6
        result = succeeded(run_cache(tree, "--shrink", cache_gb=2.5 * FRAME_BYTES / 1e9))
        assert "2 frames kept; dropped: 6 beyond the limit" in result.out
        assert "0 frames kept; dropped: 2 beyond the limit" in succeeded(run_cache(tree, "--shrink", "0")).out
        assert not shards(tree) and not shards(tree, ".index")

    def test_of_a_shard_is_limited(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(frame_cache, "SHARD_BYTES", 4 * FRAME_BYTES)
        monkeypatch.setattr(frame_cache, "MOST_MAPS", 2)
        fill(tree)
        assert [path.stat().st_size for path in shards(tree)] == [4 * FRAME_BYTES] * 3
        assert_same_frames(tree, open_cache(tree))


class TestProcesses:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_loader_fill_it_and_read_it(self, tree: Path, workers: int) -> None:
        plain = build_dataset(plain_config(tree), "train")
        data = build_dataset(cached_config(tree), "train")
        data[3]  # this process has a shard of its own open when the others are forked
        for _ in range(2):
            for item, expected in zip(DataLoader(data, num_workers=workers), plain, strict=True):
                assert torch.equal(item["images"][0], expected["images"])
            data[4]
        assert f"64x96-triangle-{VERSION}:" in succeeded(run_cache(tree, "--check")).out
        assert 12 <= frames_in(tree) <= 12 * (workers + 1)

    def test_that_are_not_forked_find_it_too(self, tree: Path, decoded: list[str]) -> None:
        data = build_dataset(cached_config(tree), "train")
        data[0], data[5]
        copy = pickle.loads(pickle.dumps(data))
        decoded.clear()
        assert torch.equal(copy[0]["images"], data[0]["images"]) and not decoded

    def test_fill_it_at_the_same_time(self, tree: Path) -> None:
        save_config(cached_config(tree), tree / "config.yaml")
        command = [sys.executable, "-m", "featdepth.data.cache", "--config", f"{tree}/config.yaml", "--workers", "0"]
        running = [
            subprocess.Popen(command, cwd=REPOSITORY, env=program_environment(), stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        assert [process.wait(120) for process in running] == [0, 0]
        check = succeeded(run_cache(tree, "--check")).out
        assert "15 good" in check and "damaged" not in check
        assert_same_frames(tree, open_cache(tree))

    def test_have_shards_of_their_own(self, tmp_path: Path) -> None:
        folder = tmp_path / size_folder(SMALL)
        folder.mkdir()
        writers = [ShardWriter(folder) for _ in range(2)]
        for number in range(6):
            source = FrameIdentity(f"/{number}.png", 1, 1, *SMALL)
            writers[number % 2].append(source, torch.full((3, *SMALL), number, dtype=torch.uint8))
        assert [writer.close() for writer in writers] == [None, None]
        for first, writer in enumerate(writers):
            kept = read_shard(writer.path.with_suffix(".index"))
            found = [(source.path, int(frame[0, 0, 0])) for _, source, frame in kept]
            assert found == [(f"/{number}.png", number) for number in range(first, 6, 2)]

    def test_that_are_killed_leave_what_they_had(self, tree: Path, tmp_path: Path) -> None:
        write_drive(tree / "raw", drive_name(3), range(150))
        write_list(tree / "split" / "train_files.txt", [f"{drive_name(3)} {frame} l" for frame in range(1, 149)])
        save_config(cached_config(tree, height=320, width=1024), tree / "config.yaml")
        command = [sys.executable, "-m", "featdepth.data.cache", "--config", f"{tree}/config.yaml", "--workers", "1"]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=program_environment(), stdout=subprocess.DEVNULL)
        until(lambda: any(path.stat().st_size > 10 * 3 * 320 * 1024 for path in shards(tree)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = frames_in(tree)
        result = succeeded(run_cache(tree, height=320, width=1024))
        added, there = map(int, re.search(r"(\d+) added, (\d+) there before", result.out).groups())
        assert 10 <= before <= there and added + there == 153
        check = succeeded(run_cache(tree, "--check", height=320, width=1024)).out
        assert "153 good" in check and "damaged" not in check


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, at most five minutes."""
    for _ in range(30_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


class TestProgram:
    def test_fills_what_training_and_validation_need(self, tree: Path, decoded: list[str]) -> None:
        result = succeeded(run_cache(tree, "--workers", "0"))
        assert "15 needed" in result.out and "15 added, 0 there before" in result.out
        decoded.clear()
        for part in ("train", "validation"):
            plain = build_dataset(plain_config(tree), part)
            data = build_dataset(cached_config(tree), part)
            for item, expected in zip(data, plain, strict=True):
                assert item.keys() == expected.keys()
                assert all(torch.equal(item[key], expected[key]) for key in item)
        assert "0 added, 15 there before" in succeeded(run_cache(tree, "--workers", "0")).out

    def test_says_when_there_is_no_room(self, tree: Path) -> None:
        result = succeeded(run_cache(tree, "--workers", "0", cache_gb=3.5 * FRAME_BYTES / 1e9))
        assert "room for 3 more" in result.out and "3 added" in result.out and "no room for more" in result.out

    def test_names_a_bad_frame_or_skips_it(self, tree: Path) -> None:
        bad = image_paths(tree)[5]
        bad.write_bytes(bad.read_bytes()[:200])
        assert str(bad) in run_cache(tree, "--workers", "1").error_line()
        result = succeeded(run_cache(tree, "--workers", "1", skip_bad_frames=True))
        assert "1 cannot be read and are left out" in result.out
        assert len(open_cache(tree)) == 14

    def test_refuses_bad_usage_in_one_line(self, tree: Path) -> None:
        save_config(plain_config(tree), tree / "none.yaml")
        assert "data.cache: is not set" in call_program(program.main, "--config", tree / "none.yaml").error_line()
        assert "is not there yet" in run_cache(tree, "--check").error_line()
        assert "--shrink" in run_cache(tree, "--shrink", "much").error_line()
        assert "not allowed with" in run_cache(tree, "--shrink", "--check").error_line()
        (tree / "file").write_text("")
        assert "which is no folder" in run_cache(tree, cache=str(tree / "file")).error_line()
        assert "cannot be made" in run_cache(tree, cache="/proc/none/here").error_line()
        assert not (tree / "frames").exists()


@pytest.mark.parametrize(
    ("processes", "names"),
    [(1, ["filling", "filled"]), pytest.param(2, ["filling"], marks=pytest.mark.long)],
)
def test_training_is_the_same_with_a_cache(processes: int, names: list[str], config_file: Path, tmp_path: Path) -> None:
    options = ["train.max_steps=2", "train.log_every=1", "data.workers=1"]

    def run(name: str, *more: str) -> str:
        arguments = ["--cpu", "--config", config_file, f"run.directory={tmp_path / name}", *options, *more]
        if processes == 1:
            return succeeded(call_program(train.main, *arguments)).out
        return succeeded(run_program_process(["train.py", *arguments], processes)).out

    run("without")
    for name in names:
        assert "frames in" in run(name, f"data.cache={tmp_path / 'frames'}")
        assert differences(tmp_path / "without", tmp_path / name) == []


def test_consecutive_samples_decode_their_common_frames_once(tree: Path, decoded: list[str], monkeypatch) -> None:
    write_list(tree / "split" / "val_files.txt", [f"{DRIVE} {frame} l" for frame in FRAMES])
    write_list(tree / "split" / "train_files.txt", [f"{drive_name(2)} 31 l"])
    data = build_dataset(plain_config(tree), "validation")
    assert len(list(data)) == 10 and len(decoded) == len(set(decoded)) == 12
