"""The work of a prediction: what there is to predict into which folder, and which process does what of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featdepth.console import count
from featdepth.errors import InputError
from featdepth.predict.made_with import claim
from featdepth.predict.outputs import is_whole, made_files, remove_outputs
from featdepth.predict.settings import IMAGE_KINDS, Settings
from featdepth.predict.sources import FrameSource, find_inputs, is_image, list_sources


def plan_work(
    words: Sequence[str],
    settings: Settings,
    made_with: dict[str, Any],
    intrinsics: dict[str, Any],
    overwrite: bool,
) -> tuple[list[FrameSource], list[str]]:
    """What there is to predict of the inputs that `words` name, and a line for each of them that means nothing.

    The output folder is claimed for it; for made_with, intrinsics and overwrite see `claim`.
    """
    inputs = find_inputs(words, settings.out)
    check_kinds(inputs.paths, settings)

    def may_change(name: str, path: Path, were_given: bool) -> bool:
        """Others may take the place of intrinsics that nothing was made with, and, to be used, of none."""
        is_used = not set(settings.dependent_kinds).isdisjoint(settings.save)
        files = (made_files(source, settings.out, settings.dependent_kinds) for source in list_sources({name: path}))
        return (is_used and not were_given) or not any(files)

    named, changed = claim(settings.out, made_with, intrinsics, inputs.paths, overwrite, may_change)
    for reason, number in inputs.left_out.items():
        print(f"left out   {count(number, 'file')} {reason}")
    sources = list_sources(named)
    if overwrite:
        remove_outputs(sources, settings.out)
    elif changed:
        changed_sources = list_sources({name: named[name] for name in changed})
        remove_outputs(changed_sources, settings.out, settings.dependent_kinds)
    return sources, inputs.failures


def check_kinds(paths: Sequence[Path], settings: Settings) -> None:
    """Say what cannot be made because no input is a clip. Raises InputError where nothing can be made."""
    if not all(is_image(path) and not path.is_dir() for path in paths):
        return
    for_clips = [kind for kind in settings.save if kind not in IMAGE_KINDS]
    if settings.refine or len(for_clips) == len(settings.save):
        asked = f"--refine {settings.refine}" if settings.refine else f"--save {','.join(settings.save)}"
        raise InputError(f"{asked}: is for folders and videos, and no input is one")
    if for_clips:
        print(f"note       no {', '.join(for_clips)}: that is for folders and videos, and no input is one")


def share(sources: Sequence[FrameSource], rank: int, processes: int, settings: Settings) -> list[FrameSource]:
    """The part of process `rank`: its images, and whole clips where something is made of the whole clip."""
    own = []
    for number, source in enumerate(sources):
        if source.is_video or is_whole(source, settings):
            own += [source] if number % processes == rank else []
        else:
            names = list(source.files)[rank::processes]
            own += [source._replace(files={name: source.files[name] for name in names})] if names else []
    return own


def describe(sources: Sequence[FrameSource]) -> str:
    """The inputs in numbers."""
    images = sum(len(source.files) for source in sources if not source.is_clip)
    folders = [source for source in sources if source.is_clip and not source.is_video]
    frames, videos = sum(len(source.files) for source in folders), sum(source.is_video for source in sources)
    parts = [count(images, "image")] if images else []
    parts += [f"{count(frames, 'image')} in {count(len(folders), 'folder')}"] if folders else []
    return ", ".join(parts + ([count(videos, "video")] if videos else []))
