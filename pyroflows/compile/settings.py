"""Settings of torch under which functions are traced."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributions import Distribution


@contextmanager
def tracing() -> Iterator[None]:
    """Without validation, which branches on values, and without a trace in the random generators.

    Without oneDNN as well, whose LSTM is one operation that cannot be traced, though a replay may use it; and without
    autocast's cache, whose tensors would be taken for ones from outside.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    before = torch._C._get_mkldnn_enabled(), torch.is_autocast_cache_enabled(), Distribution._validate_args
    _set_helpers(False, False, False)
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        _set_helpers(*before)


def _set_helpers(mkldnn: bool, autocast_cache: bool, validation: bool) -> None:
    torch._C._set_mkldnn_enabled(mkldnn)  # as torch.backends.mkldnn.flags, which warns of GPUs
    torch.set_autocast_cache_enabled(autocast_cache)
    Distribution.set_default_validate_args(validation)
