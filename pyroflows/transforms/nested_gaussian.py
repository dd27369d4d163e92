"""A Gaussian of a few dimensions, and one of all others whose mean and spread move with them; and a map of some."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import FlowTransform

# How far, in standard deviations, the few bend the mean of the others and move their spread.
REACH = 3.0


class NestedGaussian(FlowTransform):
    """``g = loc + root u`` for a few dimensions, and ``z = mean(u) + centre_root R(u) e`` for all others.

    The mean is a parabola of ``u``, the log diagonal of ``R`` and what is below it are linear: an expansion of the
    Gaussians of a latent field given its hyperparameters. All numbers are buffers, nothing is learnt. Forward costs a
    product of matrices of the many for each of the few, the inverse a triangular system for each vector.

    Args:
        input_dim: size ``D`` of the vectors.
        few: the places of the few, ``G`` of them.

    Raises:
        ValueError: if a place is out of range or twice there, or they are none or all.

    References:
        Approximate Bayesian Inference for Latent Gaussian Models by Using Integrated Nested Laplace Approximations.
        Rue, Martino, Chopin, 2009. https://doi.org/10.1111/j.1467-9868.2008.00700.x

    Example:
        >>> scale = NestedGaussian(3, [0])
        >>> scale.sizes[0] = 1.0  # the others have a spread of exp(u)
        >>> scale(torch.ones(3)).log().tolist()
        [0.0, 1.0, 1.0]
    """

    def __init__(self, input_dim: int, few: Sequence[int] | Tensor) -> None:
        super().__init__(input_dim)
        few = _places("NestedGaussian", few, input_dim).cpu()
        many = torch.tensor([k for k in range(input_dim) if k not in set(few.tolist())])
        first, rest = len(few), len(many)
        terms = first * (first + 3) // 2
        pairs = torch.combinations(torch.arange(first), with_replacement=True).mT
        self.register_buffer("pairs", pairs, persistent=False)
        numbers = {
            "loc": torch.zeros(first),
            "root": torch.eye(first),
            "centre": torch.zeros(rest),
            "centre_root": torch.eye(rest),
            "slopes": torch.zeros(terms, rest),
            "sizes": torch.zeros(terms, rest),
            "shears": torch.zeros(terms, rest, rest),
        }
        for name, value in {"few": few, "many": many, **numbers}.items():
            self.register_buffer(name, value)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        first, rest = z.index_select(-1, self.few), z.index_select(-1, self.many)
        u = _solve(self.root, first - self.loc) if inverse else first
        terms = self._terms(u)
        mean, log_size = self.centre + terms @ self.slopes, terms @ self.sizes
        ladj = self.root.diagonal().log().sum() + self.centre_root.diagonal().log().sum() + log_size.sum(-1)
        if inverse:
            moved = torch.einsum("...k,kij->...ij", terms, self.shears) + torch.diag_embed(log_size.exp())
            found = _solve(moved, _solve(self.centre_root, rest - mean))
            return self._joined(u, found), -ladj
        sheared = (rest @ self.shears.flatten(0, 1).mT).unflatten(-1, self.shears.shape[:2])
        turned = log_size.exp() * rest + (terms.unsqueeze(-2) @ sheared).squeeze(-2)
        return self._joined(self.loc + first @ self.root.mT, mean + turned @ self.centre_root.mT), ladj

    def _terms(self, u: Tensor) -> Tensor:
        """What everything is linear in: the few, and halves of their products, both of which end far out."""
        soft = REACH * (u / REACH).tanh()
        one, other = self.pairs
        same = torch.where(one == other, 0.5, 1.0).to(u)
        return torch.cat([u, same * soft[..., one] * soft[..., other]], -1)

    def _joined(self, first: Tensor, rest: Tensor) -> Tensor:
        order = torch.cat([self.few, self.many]).argsort()
        return torch.cat([first, rest], -1).index_select(-1, order)


class Part(FlowTransform):
    """A transform of some dimensions, of their whole space onto itself; the others stay.

    Args:
        input_dim: size ``D`` of the vectors.
        transform: of the dimensions at the places, without context.
        places: of as many dimensions as the transform has.

    Raises:
        ValueError: if the transform has another size or a context, or a place is out of range or twice there.

    Example:
        >>> from pyroflows.transforms import Affine
        >>> Part(3, Affine(1, loc=torch.ones(1)), [1])(torch.zeros(3)).tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(self, input_dim: int, transform: FlowTransform, places: Sequence[int] | Tensor) -> None:
        super().__init__(input_dim)
        places = _places("Part", places, input_dim)
        if transform.context_dim or transform.event_shape != (len(places),):
            raise ValueError(
                f"Part expected a transform of {len(places)} dimensions without context, got one of the event shape "
                f"{tuple(transform.event_shape)} and context_dim={transform.context_dim}"
            )
        self.transform = transform
        self.register_buffer("places", places)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, ladj = self.transform._map(z.index_select(-1, self.places), None, inverse)
        order = torch.arange(self.input_dim, device=z.device).index_put((self.places,), self.input_dim + self._counted)
        return torch.cat([z, value], -1).index_select(-1, order), ladj

    @property
    def _counted(self) -> Tensor:
        return torch.arange(len(self.places), device=self.places.device)


def _places(name: str, places: Sequence[int] | Tensor, size: int) -> Tensor:
    """Places of some of so many dimensions, checked."""
    found = torch.as_tensor(places)
    if found.dim() != 1 or not 0 < len(found) < size or len(set(found.tolist()) & set(range(size))) < len(found):
        raise ValueError(
            f"{name} expected some but not all of the places 0 to {size - 1}, each once, got {found.tolist()}"
        )
    return found


def _solve(lower: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(lower, x.unsqueeze(-1), upper=False).squeeze(-1)
