"""The marginal density of the globals with each row's latents integrated out by adaptive Gauss-Hermite quadrature."""

import math
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...model.rows import Pass, RowJoint
from .climb import Level
from .marginal import row_density
from .rows import curved, negative, newton

# Nodes along each dimension of rows of one, two and three latents; one less for a second opinion.
ORDERS = {1: 9, 2: 6, 3: 4}
# Numbers of rows that are handled at once.
AT_ONCE = 500_000


class Rule(NamedTuple):
    """Nodes of a standard normal, ``(K, d)``, and the logs of their weights, ``(K,)``."""

    nodes: Tensor
    log_weights: Tensor

    @classmethod
    def of(cls, width: int, like: Tensor, less: int = 0) -> "Rule | None":
        """The rule for rows of so many latents, by so many nodes less along each; None for too many latents.

        Example:
            >>> rule = Rule.of(1, torch.zeros(()))
            >>> (rule.log_weights.exp() * rule.nodes[:, 0] ** 4).sum().round(decimals=4)
            tensor(3.)
        """
        if width not in ORDERS:
            return None
        return cls(*(part.to(like) for part in _product(ORDERS[width] - less, width)))


@cache
def _product(order: int, width: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    log_weights = np.log(weights) - 0.5 * math.log(2 * math.pi)
    grid = torch.as_tensor(np.array(list(product(nodes, repeat=width))))
    return grid, torch.as_tensor(np.array([sum(part) for part in product(log_weights, repeat=width)]))


def quadrature_marginal(rule: Rule, joint: RowJoint, g: Tensor, z: Tensor) -> Level:
    """``log p(g) + sum_j log p(data of row j | g)``, each row by a rule around its mode, in units of its curvature.

    One node is the Laplace approximation. Its error for each row is small but of one sign, and adds up over rows, while
    the posterior of the globals narrows: with many rows that are not Gaussian it is many standard deviations.

    Args:
        rule: nodes and weights.
        joint: the model.
        g: globals ``(Dg,)``.
        z: where the rows' modes are searched from, ``(R, d)``.

    References:
        Approximations to the Log-Likelihood Function in the Nonlinear Mixed-Effects Model. Pinheiro, Bates, 1995.
        https://doi.org/10.1080/10618600.1995.10474663
    """
    value, grad, found = g.new_zeros(()), torch.zeros_like(g), z.clone()
    for number, some in enumerate(joint.passes):
        part, slope, mode = _pass(rule, joint, g.detach(), some, some.of(z), first=number == 0)
        value, grad, found = value + part, grad + slope, some.put(found, mode)
    return Level(value, grad, found)


class Nodes(NamedTuple):
    """Rows at the nodes of a rule around their modes.

    Args:
        mode: ``(R, d)``.
        z: the nodes, ``(K, R, d)``.
        levels: what each adds to the integral of its row, in logs, ``(K, R)``.
    """

    mode: Tensor
    z: Tensor
    levels: Tensor

    @classmethod
    def of(cls, rule: Rule, joint: RowJoint, g: Tensor, some: Pass, z: Tensor) -> "Nodes":
        """Those of some rows at globals ``(Dg,)``, whose modes are searched from ``z``."""
        rows = partial(row_density, joint, g, some.index)
        mode = newton(rows, z)
        root = torch.linalg.cholesky(negative(curved(rows, mode).bend))
        size = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]
        at = mode + torch.linalg.solve_triangular(root.mT, rule.nodes[:, None, :, None], upper=True)[..., 0]
        weights = rule.log_weights + 0.5 * rule.nodes.square().sum(-1)
        with torch.no_grad():
            levels = torch.cat([_levels(joint, g, part, some)[1] for part in at.split(_at_once(joint))])
        return cls(mode, at, levels + weights[:, None] - size)


def row_moments(rule: Rule, joint: RowJoint, g: Tensor, some: Pass, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(R, d)`` and covariance ``(R, d, d)`` of some rows' latents given globals ``(Dg,)`` and their data."""
    nodes = Nodes.of(rule, joint, g, some, z)
    shares = nodes.levels.softmax(0)
    mean = (shares[..., None] * nodes.z).sum(0)
    off = nodes.z - mean
    return mean, ((shares[..., None] * off)[..., None] * off[..., None, :]).sum(0)


def _pass(rule: Rule, joint: RowJoint, g: Tensor, some: Pass, z: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradient from some rows, with the globals' own terms the first time, and the rows' modes.

    The nodes stand still as the globals move, as the integral does not hang on where they are. So its gradient is the
    mean of those at the nodes, by their shares of the integral.
    """
    mode, z, levels = Nodes.of(rule, joint, g, some, z)
    value = levels.logsumexp(0)
    shares = (levels - value).exp() * some.weight
    total, grad = (value * some.weight).sum(), torch.zeros_like(g)
    for part, share in zip(z.split(_at_once(joint)), shares.split(_at_once(joint)), strict=True):
        with torch.enable_grad():
            moving = g.clone().requires_grad_()
            outer, level = _levels(joint, moving, part, some)
            own = outer if first else torch.zeros_like(outer)
            grad += torch.autograd.grad((share * level).sum() + own, moving)[0]
        total, first = total + own.detach(), False
    return total, grad, mode


def _at_once(joint: RowJoint) -> int:
    return max(1, AT_ONCE // joint.numbers)


def _levels(joint: RowJoint, g: Tensor, z: Tensor, some: Pass) -> tuple[Tensor, Tensor]:
    """The globals' own term ``()``, and the density of rows ``(K, R)`` at latents ``(K, R, d)``."""
    terms = joint(g.expand(len(z), -1), z, some.index)
    return terms.outer[0], terms.prior + terms.rest
