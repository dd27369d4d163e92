"""A variational autoencoder of four parts: encoder, decoder, prior, likelihood."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..arguments import check_counts
from ..autograd import is_traced
from ..compile import TracedLoss
from ..distributions import FlowDistribution
from ..training import Callback, Checkpoint, EpochLog, Epochs, Listener
from .check import CheckedBatches, check_batch
from .likelihood import bernoulli, center

# Rows that are decoded at a time.
CHUNK = 10_000


class VAE(PyroModule):
    """Latent vectors ``z`` from a prior, data from a likelihood of what a decoder makes of them.

    ``model`` and ``guide`` are for SVI with any ELBO; :meth:`fit` trains on the minibatches of a loader.

    Args:
        encoder: called with data, it gives the distribution of their latents, of batch shape ``(rows,)``, such as a
            :class:`~pyroflows.guides.FlowEncoder`.
        decoder: maps latents ``(rows, D)`` to what ``likelihood`` takes: a tensor ``(rows, ...)``, or a tuple or
            dictionary of them. It meets one batch dimension only, whatever draws and particles there are, so that it
            may convolve.
        prior: a :class:`~pyroflows.vae.FlowPrior`, a :class:`~pyroflows.vae.NormalPrior`, or a module with the
            same methods.
        likelihood: makes a distribution over single pixels from the output of the decoder; its support is the range
            that data must lie in.

    Example:
        >>> from pyroflows import FlowEncoder, FlowPrior
        >>> encoder = FlowEncoder(nn.Linear(9, 16), 16, latent_dim=2)
        >>> vae = VAE(encoder, nn.Linear(2, 9), FlowPrior(2))
        >>> bits = (torch.rand(20, 9) < 0.5).float()
        >>> log = vae.fit([bits[:10], bits[10:]], epochs=2, progress=False)
        >>> vae.generate(3).shape, vae.log_likelihood(bits, samples=10).shape
        (torch.Size([3, 9]), torch.Size([20]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        likelihood: Callable[[Tensor], TorchDistribution] = bernoulli,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior, self.likelihood = encoder, decoder, prior, likelihood

    @pyro_method
    def model(self, x: Tensor, context: Tensor | None = None) -> None:
        """The generative model of rows ``x``, for Pyro."""
        x, context = self._ready(x, context)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", self.prior(context))
            pyro.sample("x", self._likelihood(z, x), obs=x)

    @pyro_method
    def guide(self, x: Tensor, context: Tensor | None = None) -> None:
        """The posterior of the latents of rows ``x``, for Pyro."""
        x, context = self._ready(x, context)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", self.encoder(x))

    def elbo(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """One draw's estimate of the ELBO of each row, of shape ``(rows,)``, in nats, with gradients."""
        x, context = self._ready(x, context)
        return self._log_weights(x, context, self.encoder(x), ())

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, samples: int = 1000, context: Tensor | None = None) -> Tensor:
        """Importance sampling estimate of the log likelihood of each row, of shape ``(rows,)``, in nats.

        The estimate lies below the truth, less so with more samples. Memory does not grow with them.

        References:
            Importance Weighted Autoencoders. Burda, Grosse, Salakhutdinov, 2016. https://arxiv.org/abs/1509.00519
        """
        check_counts("VAE", {}, samples=samples)
        x, context = self._ready(x, context)
        posterior, size = self.encoder(x), max(CHUNK // len(x), 1)
        sizes = [size] * (samples // size) + [samples % size] * (samples % size > 0)
        parts = [self._log_weights(x, context, posterior, (count,)).logsumexp(0) for count in sizes]
        return torch.stack(parts).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of the likelihood at one draw of the latents of each row; the mode where it has no mean."""
        x, _ = self._ready(x, None)
        return center(self._likelihood(self.encoder(x).sample(), x))

    @torch.no_grad()
    def generate(self, n: int, temperature: float = 1.0, context: Tensor | None = None) -> Tensor:
        """The mean of the likelihood at ``n`` draws of the prior; with a context ``(n, C)``, one for each row of it.

        Where the likelihood has no mean, as a Categorical has none, its mode. A ``temperature`` below 1 gives images
        that are more typical and less diverse.
        """
        check_counts("VAE", {"n": 0}, n=n)
        prior = self.prior(context, temperature)
        if prior.batch_shape not in ((), (n,)):
            raise ValueError(f"VAE expected a context of {n} rows, one for each draw, got {tuple(context.shape)}")
        return center(self._pixels(prior.sample(() if prior.batch_shape else (n,))))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 10, context: Tensor | None = None) -> Tensor:
        """Images on the way from image ``a`` to image ``b``, along an arc of the prior's base."""
        check_counts("VAE", {}, steps=steps)
        x, _ = self._ready(torch.stack([a, b]), None)
        ends = self.encoder(x).sample()
        self._likelihood(ends, x)
        return center(self._pixels(self.prior.path(*ends, steps, context)))

    @torch.inference_mode(False)  # with gradients, whatever is around
    def fit(
        self,
        loader: Iterable,
        epochs: int,
        *,
        validation: Iterable | None = None,
        lr: float = 1e-3,
        patience: int | None = None,
        checkpoint: str | Path | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        trace: bool = True,
    ) -> EpochLog:
        """Trains on the minibatches of a loader by the ELBO; the log holds negative ELBOs, in nats a row.

        Iterates are averaged; the state with the best validation is kept, without one the last.

        Args:
            loader: gives data ``(rows, ...)`` or tuples of data and, for a prior with a context, contexts.
            epochs: how many epochs in all, counted from the first start.
            validation: a loader of rows held out.
            lr: largest learning rate, which falls to one percent of it.
            patience: epochs without a better validation after which to stop.
            checkpoint: a file, written after each epoch. If it is there, training goes on from it, to the numbers that
                it would have had without an end, however it ended; ``epochs`` and ``patience`` may be others then.
            callback: called after each epoch as ``callback(epoch, loss, rate)``, with epochs from 1 on, the loss in
                training and the learning rate; training ends where it returns True. What it raises is passed on after
                training has ended in the same way: the best state, or the average, is left.
            progress: show a progress bar.
            trace: replay a traced graph of the step, see :class:`~pyroflows.compile.TracedLoss`; without, encoder,
                decoder, prior and likelihood are called at each step.

        Raises:
            ValueError: if the loader is empty, data are NaN or outside the likelihood's support, shapes do not fit, or
                the checkpoint is damaged, or of another architecture, learning rate or first batch.
            FloatingPointError: if too many steps were not finite.
        """
        check_counts("VAE", {}, epochs=epochs, **({} if patience is None else {"patience": patience}))
        listener = Listener("VAE", callback)
        trainer, saved = Epochs(self, lr=lr, average=0.995), Checkpoint("VAE.fit", checkpoint)
        batches = self._batches(loader)
        saved.check(trainer.problem() | ({} if checkpoint is None else batches.described()))
        loss = TracedLoss(self._loss, trainer.parameters) if trace else self._loss
        with pyro.validation_enabled(False):  # batches are checked as they come
            log = trainer.run(
                loss,
                batches,
                epochs,
                validate=None if validation is None else lambda: self._mean_loss(validation),
                patience=patience,
                checkpoint=saved,
                listener=listener,
                progress=progress,
            )
        listener.pass_on()
        return log

    def _loss(self, x: Tensor, context: Tensor | None) -> Tensor:
        return -self._log_weights(x, context, self.encoder(x), ()).mean()

    def _mean_loss(self, loader: Iterable) -> float:
        found = [self.elbo(x, context) for x, context in self._batches(loader)]
        if not found:
            raise ValueError("VAE expected at least one batch for validation, got none: the loader is empty")
        return -torch.cat(found).mean().item()

    def _batches(self, loader: Iterable) -> CheckedBatches:
        return CheckedBatches(loader, self._ready, bool(self.prior.context_dim))

    def _ready(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Data and context in the precision and on the device of the model; raises if they cannot be right."""
        check_batch(x, context)
        like = next(self.parameters(), x)
        return x.to(like), None if context is None else context.to(like)

    def _log_weights(
        self, x: Tensor, context: Tensor | None, posterior: TorchDistribution, draws: tuple[int, ...]
    ) -> Tensor:
        """``log p(x, z) - log q(z | x)`` at draws of ``q``, of shape ``(*draws, rows)``."""
        if isinstance(posterior, FlowDistribution):
            z, log_q = posterior.rsample_and_log_prob(draws)
        else:
            z = posterior.rsample(draws)
            log_q = posterior.log_prob(z)
        pixels = self._likelihood(z, x)
        # Called, a PyroModule looks at each parameter, as Pyro's handlers want it; here there are none.
        prior = self.prior.forward(context)
        if prior.event_shape != z.shape[-1:]:
            raise ValueError(
                f"VAE expected a prior and an encoder of one latent_dim, got a prior of {tuple(prior.event_shape)} and "
                f"latents {tuple(z.shape)}"
            )
        found = pixels.log_prob(x) + prior.log_prob(z) - log_q
        if not is_traced(x, z):
            return found
        return torch.where(pixels.support.check(x), found, math.nan)  # a graph cannot raise

    def _pixels(self, z: Tensor) -> TorchDistribution:
        """The likelihood at latents ``(..., D)``, which the decoder sees as rows of one batch."""
        rows = z.reshape(-1, z.shape[-1])

        def whole(made: Tensor) -> Tensor:
            # What has no rows, such as a scale that is shared, is left as it is.
            return made.reshape(*z.shape[:-1], *made.shape[1:]) if made.shape[:1] == rows.shape[:1] else made

        return self.likelihood(pytree.tree_map_only(Tensor, whole, self.decoder(rows)))

    def _likelihood(self, z: Tensor, x: Tensor) -> TorchDistribution:
        """The distribution of rows like ``x``; raises if that cannot have made ``x``."""
        pixels = self._pixels(z)
        if pixels.batch_shape != z.shape[:-1] + x.shape[1:]:
            raise ValueError(
                f"VAE expected a decoder and likelihood of shape {tuple(z.shape[:-1] + x.shape[1:])} for latents "
                f"{tuple(z.shape)} and data {tuple(x.shape)}, got {tuple(pixels.batch_shape)}"
            )
        if not is_traced(x, z) and not pixels.support.check(x).all():
            raise ValueError(
                f"VAE expected data in the support of its likelihood, {pixels.support}, got values from "
                f"{x.min():g} to {x.max():g}: scale or binarise them, or use another likelihood"
            )
        return pixels.to_event(x.dim() - 1)
