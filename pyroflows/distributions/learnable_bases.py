"""Bases with parameters of their own: modules that are called for a distribution."""

import torch
from pyro.distributions import Distribution, Independent, Normal, StudentT
from torch import Tensor, nn

from ..arguments import check_counts, check_sizes
from ..maths import soft_clip


class StudentTBase(nn.Module):
    """A Student t in each dimension with learnable degrees of freedom: a flow of it has tails as heavy as the data's.

    Maps with bounded slopes leave the heaviness of tails as it is in the base. Draws have gradients, also for the
    degrees of freedom, which go from 0.5 to 200 and start at 10.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: not used, so that the class is a recipe.

    References:
        Tails of Lipschitz Triangular Flows. Jaini, Kobyzev, Yu, Brubaker, 2020. https://arxiv.org/abs/1907.04481

    Example:
        >>> from pyroflows import FlowDistribution
        >>> from pyroflows.flows import maf
        >>> base, flow = StudentTBase(3), maf(3)
        >>> FlowDistribution(base(), flow).log_prob(torch.zeros(3)).shape
        torch.Size([])
    """

    def __init__(self, input_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        check_sizes("StudentTBase", input_dim, context_dim)
        self.log_df = nn.Parameter(torch.zeros(input_dim))

    @property
    def df(self) -> Tensor:
        """The degrees of freedom, ``(D,)``."""
        return 10.0 * soft_clip(self.log_df, 3.0).exp()

    def forward(self, context: Tensor | None = None, temperature: float = 1.0) -> Distribution:
        """The distribution; a ``temperature`` below 1 shrinks its scale."""
        loc = torch.zeros_like(self.log_df)
        return Independent(StudentT(self.df, loc, torch.full_like(loc, temperature), validate_args=False), 1)


class ClassBase(nn.Module):
    """A normal for each class, with learnable means and scales; the flow after it is shared.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: number of classes; the context is one-hot, or has a weight for each class.

    Raises:
        ValueError: if there is no class, or a context of another size.

    Example:
        >>> base = ClassBase(3, 2)
        >>> base(torch.eye(2)[[0, 1, 1]]).batch_shape
        torch.Size([3])
    """

    def __init__(self, input_dim: int, context_dim: int) -> None:
        super().__init__()
        check_counts("ClassBase", {}, input_dim=input_dim, context_dim=context_dim)
        self.loc = nn.Parameter(torch.randn(context_dim, input_dim))
        self.log_scale = nn.Parameter(torch.zeros(context_dim, input_dim))

    def forward(self, context: Tensor, temperature: float = 1.0) -> Distribution:
        """The distribution of each row of a context ``(..., classes)``; a ``temperature`` shrinks its scale."""
        if context.shape[-1] != len(self.loc):
            raise ValueError(
                f"ClassBase expected a context of shape (..., {len(self.loc)}), got {tuple(context.shape)}: make class "
                f"numbers one-hot, as by torch.nn.functional.one_hot"
            )
        loc, scale = context @ self.loc, temperature * soft_clip(context @ self.log_scale, 10.0).exp()
        return Independent(Normal(loc, scale, validate_args=False), 1)
