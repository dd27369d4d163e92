"""Densities of data with the habits of scikit-learn, which must be installed."""

try:
    from sklearn.utils.validation import validate_data  # noqa: F401
except ImportError as error:
    raise ImportError("FlowDensity needs scikit-learn 1.6 or newer: pip install 'pyroflows[sklearn]'") from error

from .flow_density import FlowDensity

__all__ = [
    "FlowDensity",
]
