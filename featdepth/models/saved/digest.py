"""What tells the weights of a model from any others."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_digest(model: nn.Module, more: str = "") -> str:
    """sha256 of names and values of all weights, in the order of names; `more`: text that is hashed before them."""
    digest = hashlib.sha256(more.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
