"""What is made of a clip as a whole, each by a thread that takes the frames as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Thread

from featdepth.prediction.inputs import Source
from featdepth.prediction.outputs import CLIP_KINDS, Saved, Settings
from featdepth.prediction.side_by_side import write_side_by_side

MOST_QUEUED = 8  # frames that wait for each
PATIENCE = 0.5  # seconds between two looks at whether a thread still takes frames


class Left(Exception):
    """The clip was left by an error; what was begun is not to be finished."""


class Fed:
    """Runs `consume` on the items that are added, in a thread of its own. `finish` raises what it raised."""

    def __init__(self, consume: Callable[[Iterator[Saved]], None]) -> None:
        self.queue: Queue[Saved | type[Left] | None] = Queue(MOST_QUEUED)
        self.error: BaseException | None = None
        self.thread = Thread(target=self.run, args=(consume,), daemon=True)
        self.thread.start()

    def run(self, consume: Callable[[Iterator[Saved]], None]) -> None:
        try:
            consume(self.items())
        except Left:
            pass
        except BaseException as error:  # for the thread that waits in `finish`
            self.error = error

    def items(self) -> Iterator[Saved]:
        while (item := self.queue.get()) is not None:
            if item is Left:
                raise Left
            yield item

    def add(self, item: Saved | type[Left] | None) -> None:
        """Hand an item over, waiting while many wait already; nothing where the thread has ended."""
        while self.thread.is_alive():
            try:
                return self.queue.put(item, timeout=PATIENCE)
            except Full:
                continue

    def finish(self, with_error: bool) -> None:
        """No item comes any more: wait for the end."""
        self.add(Left if with_error else None)
        self.thread.join()
        if self.error is not None:
            raise self.error


class ClipOutputs:
    """Everything that `settings.save` wants of the clip `source`, as a context: written when it is left without error.

    unit: METRES or RELATIVE, of depth.
    """

    def __init__(self, source: Source, settings: Settings, unit: str) -> None:
        self.makers: list[Fed] = []
        folder = settings.out / source.name
        for kind in CLIP_KINDS:
            if source.is_clip and kind in settings.save:
                self.makers.append(Fed(partial(MAKERS[kind], folder=folder, settings=settings, unit=unit)))

    def __enter__(self) -> ClipOutputs:
        return self

    def add(self, saved: Saved) -> None:
        """The next frame of the clip."""
        for maker in self.makers:
            maker.add(saved)

    def __exit__(self, kind: type | None, *_: object) -> None:
        errors = []
        for maker in self.makers:
            try:
                maker.finish(with_error=kind is not None)
            except Exception as error:
                errors.append(error)
        if errors and kind is None:
            raise errors[0]


def make_video(frames: Iterator[Saved], folder: Path, settings: Settings, unit: str) -> None:
    """The clip's frames beside their depth."""
    shown = ((saved.frame.view.numpy(), saved.depth, saved.frame.seconds) for saved in frames)
    path = folder / CLIP_KINDS["video"][0]
    write_side_by_side(path, shown, unit, settings.nearest, settings.frame_rate)


MAKERS = {"video": make_video}
