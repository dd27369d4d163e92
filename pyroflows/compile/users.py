"""Which code is the user's own, and may change while it is worked on."""

import sys
from collections.abc import Iterator
from types import CodeType

OURS = __name__.partition(".")[0]
# These packages and the standard library read nothing that changes.
KNOWN = {"torch", "pyro", "numpy", OURS, *sys.stdlib_module_names}


def is_users(module: str | None) -> bool:
    """Whether it is a module that a user may be working on: none of those above, and none that was installed."""
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    known = (module or "").partition(".")[0] in KNOWN
    return not known and "site-packages" not in file and "dist-packages" not in file


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)
