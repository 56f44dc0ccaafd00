"""Python runs this at its start where this folder is on PYTHONPATH, as in all programs that the tests start."""

import small_resnet  # noqa: F401
