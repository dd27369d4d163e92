"""New figures: Matplotlib is imported when one is drawn."""

from numpy.typing import NDArray


def new_axes(rows: int, columns: int, size: tuple[float, float]) -> NDArray:
    """A new Figure's Axes as a two-dimensional array."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return axes
