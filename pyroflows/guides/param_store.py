"""Whether Pyro's parameter store has a guide's own parameters."""

import pyro
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger


def check_store(guide: PyroModule, part: str) -> None:
    """Raises if training would move the parameters of an older guide in the place of this one's.

    Pyro keys parameters by name: SVI would train those that are in the store, silently.

    Args:
        guide: a guide that is set up, while it runs.
        part: one of its modules that has parameters.

    Raises:
        RuntimeError: if the store has another parameter by the name of the first one.
    """
    if not any(isinstance(m, TraceMessenger) and m.param_only for m in _PYRO_STACK):
        return
    name, own = next(guide.__dict__["_modules"][part].named_parameters())
    name, store = f"{guide._pyro_get_fullname(part)}$$${name}", pyro.get_param_store()
    if name in store and store[name].unconstrained() is not own:
        raise RuntimeError(
            f"expected parameters of this guide under {name!r}, got those of another guide: call "
            f"pyro.clear_param_store() before a new guide is trained"
        )
