"""Models as files: saved into a directory, shared on the Hugging Face hub, read from either."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from featdepth.config import Config, from_dict
from featdepth.config.checks import check_config
from featdepth.config.values import shown
from featdepth.errors import InputError
from featdepth.models.saved.provenance import Provenance
from featdepth.models.saved.storage import (
    CONFIG_FILE,
    LIBRARY,
    TAGS,
    check_fit,
    hub_reason,
    read_camera_names,
    read_model_directory,
    write_model_directory,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from typing_extensions import Self

    from featdepth.models.large_depth import Base

# Version of config.json in a model directory.
MODEL_FORMAT = 1


class Pretrained(ModelHubMixin, library_name=LIBRARY, tags=TAGS):
    """What a model can do as a file; the networks themselves are those of `featdepth.models.featdepth`.

    It is made by `(settings, frames, height, width, cameras, base)` and has these and `provenance` as attributes.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict | None = None,
        **push_to_hub_kwargs: object,
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and a card, `README.md`, replacing `save_directory` as a whole.

        model_card_kwargs: for `generate_model_card`. push_to_hub: do that too, as `repo_id` (default: the directory's
        name) and with `push_to_hub_kwargs`; returns the URL. config: nothing but None, a model writes its own.
        """
        if config is not None:
            raise ValueError("a model writes its own configuration")
        directory, model_card_kwargs = Path(save_directory), model_card_kwargs or {}
        card = self.generate_model_card(**model_card_kwargs)
        write_model_directory(directory, self.describe_itself(), self.state_dict(), str(card))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or directory.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **options: object) -> str:
        """Upload the model and its card to the Hugging Face hub as `user/name`; returns the URL of the commit.

        options: `private`, `token`, `branch`, `create_pr`, `commit_message`, `model_card_kwargs`, ... as
        `huggingface_hub.ModelHubMixin.push_to_hub` takes them. Raises InputError where the hub does not take it.
        """
        try:
            return super().push_to_hub(repo_id, **options)
        except (InputError, TypeError):
            raise
        # As in downloading, errors of several libraries.
        except Exception as error:
            raise InputError(f"{repo_id}: the model could not be uploaded to the hub ({hub_reason(error)})") from error

    def generate_model_card(self, evaluation: str | Path | None = None) -> ModelCard:
        """What people should know of the model, in markdown; `evaluation`: the folder of its scores by `evaluate.py`.

        Raises InputError for scores that cannot be read.
        """
        from featdepth.models.saved.model_card import model_card, read_scores

        scores = None if evaluation is None else read_scores(evaluation)
        parameters = sum(map(torch.numel, self.parameters()))
        return model_card(self.describe_itself(), self.provenance, parameters, self.scale_source, scores)

    def describe_itself(self) -> dict:
        """The content of `config.json`."""
        # Where the weights came from is in the provenance; a saved model needs no other file.
        settings = dataclasses.replace(self.settings, pretrained=False, feature_encoder=None, init=None)
        content = {
            "format": MODEL_FORMAT,
            "data": {"frames": self.frames, "height": self.height, "width": self.width},
            "model": dataclasses.asdict(settings),
            "training": self.provenance.as_dict(),
        }
        if self.cameras is not None:
            content["cameras"] = self.cameras.describe((self.height, self.width))
        if self.base is not None:
            content["base"] = dataclasses.asdict(self.base)
        return content

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """The model in a directory that `save_pretrained` wrote, or of a hub id `user/name`, in evaluation mode.

        For the hub alone: revision: branch, tag or commit; token: of a private model (default: of `hf auth login`);
        cache_dir: where downloads are kept; local_files_only: download nothing; force_download: what is there too.
        Raises InputError for a missing or damaged model.
        """
        content, state = read_model_directory(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        where = f"{source}/{CONFIG_FILE}"
        if content.get("format") != MODEL_FORMAT:
            raise InputError(
                f"{where}: model format {shown(content.get('format'))}, this version reads format {MODEL_FORMAT}"
            )
        for section in ("data", "model"):
            if not isinstance(content.get(section), dict):
                raise InputError(f"{where}: has no section {section}; copy the file again")
        config = from_dict({section: content[section] for section in ("data", "model")}, where)
        check_config(config, where, check_files=False, training=False)
        provenance = Provenance.read(content, where)
        cameras = read_camera_names(content, source) if config.model.intrinsics == "learned" else ()
        base = None
        if config.model.depth is not None:
            from featdepth.models.large_depth import Base  # most models have none

            base = Base.read(content.get("base"), where)
        model = cls.from_state(config, state, str(source), cameras, base)
        model.provenance = provenance
        return model

    @classmethod
    def from_state(
        cls,
        config: Config,
        state: Mapping[str, Tensor],
        source: str,
        cameras: Sequence[str] = (),
        base: Base | None = None,
    ) -> Self:
        """The model of `config` with the weights `state`, in evaluation mode; InputError where they do not fit."""
        data = config.data
        arguments = (config.model, data.frames, data.height, data.width, cameras, base)
        # Without memory first, so that sizes which the weights do not have allocate nothing.
        with torch.device("meta"):
            model = cls(*arguments)
        check_fit(model, state, source)
        if any(name not in state for name, _ in model.named_buffers()):
            # What networks of others compute when they are made, and do not save.
            model = cls(*arguments)
        else:
            model = model.to_empty(device="cpu")
        model.load_state_dict(state)
        return model.eval()
