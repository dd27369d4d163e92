"""The laws that every transform and every bijector obeys, as checks for authors of their own."""

from .bijector_laws import BIJECTOR_LAWS, check_bijector, check_bijector_law
from .transform_laws import LAWS, check_law, check_transform

__all__ = [
    "BIJECTOR_LAWS",
    "LAWS",
    "check_bijector",
    "check_bijector_law",
    "check_law",
    "check_transform",
]
