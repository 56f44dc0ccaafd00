"""The configuration: its keys, and how it is read, checked and saved."""

from featdepth.config.keys import Config, Data, Evaluate, Loss, Model, Optimizer, Run, Schedule, Train
from featdepth.config.reading import (
    Parser,
    from_dict,
    load_config,
    parse_arguments,
    parse_override,
    save_config,
    to_dict,
)

__all__ = [
    "Config",
    "Data",
    "Evaluate",
    "Loss",
    "Model",
    "Optimizer",
    "Parser",
    "Run",
    "Schedule",
    "Train",
    "from_dict",
    "load_config",
    "parse_arguments",
    "parse_override",
    "save_config",
    "to_dict",
]
