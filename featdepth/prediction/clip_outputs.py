"""What is made of a clip as a whole, each by a thread that takes the frames as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from queue import Full, Queue
from threading import Thread

from featdepth.prediction.inputs import Source
from featdepth.prediction.outputs import Saved, Settings, clip_path
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
        if source.is_clip and "video" in settings.save:
            path = clip_path(source, settings, "video")
            self.makers.append(Fed(partial(write_video, path=path, settings=settings, unit=unit)))

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
