"""A page on a posterior: the verdict, the table, how the fit went, and pictures."""

from pathlib import Path

from .. import files
from ..training import History
from . import page, plots
from .draws import Draws


def write_report(posterior: Draws, history: History, path: str | Path | None) -> str:
    """One page, written as HTML with pictures if given a path; returns its text.

    Args:
        posterior: what it is about.
        history: what the fit recorded.
        path: a file to write.
    """
    sites = [site.name for site in posterior.log_joint.space.sites]
    title = f"Posterior of {', '.join(sites)}"
    steps = f"{len(history.elbo)} steps, {history.bad_steps} dropped; stopped: {history.stopped or 'not said'}"
    text = f"{title}\n\n{posterior.summary(weighted=posterior.diagnostics.grade == 'usable with weights')}\n{steps}"
    if path is not None:
        figures = [plots.plot_elbo(history.elbo)] if history.elbo else []
        with files.replacing(path) as file:
            file.write(page.page(title, text, [*figures, posterior.plot_pairs()]).encode())
    return text
