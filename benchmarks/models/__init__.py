"""Twenty real posteriors with references, as Pyro models; see ``Posterior``."""

from . import hierarchical, populations, regressions, series
from .posterior import Posterior, standard_error

_EIGHT = -31.3113

POSTERIORS = {
    "eight_c": Posterior(
        "posteriordb/eight_schools-eight_schools_centered",
        hierarchical.eight_centred,
        hierarchical.read_eight,
        log_evidence=_EIGHT,
    ),
    "eight_nc": Posterior(
        "posteriordb/eight_schools-eight_schools_noncentered",
        hierarchical.eight_noncentred,
        hierarchical.read_eight,
        hierarchical.eight_reference,
        hierarchical.eight_sites,
        log_evidence=_EIGHT,
    ),
    "ark": Posterior("posteriordb/arK-arK", regressions.ark, regressions.read_ark),
    "garch": Posterior(
        "posteriordb/garch-garch11", series.garch, series.read_garch, series.garch_reference, series.garch_sites
    ),
    "gp_pois": Posterior(
        "posteriordb/gp_pois_regr-gp_pois_regr",
        hierarchical.gp_poisson,
        hierarchical.read_gp,
        hierarchical.gp_reference,
        hierarchical.gp_sites,
    ),
    "lv": Posterior(
        "posteriordb/hudson_lynx_hare-lotka_volterra", populations.lotka_volterra, populations.read_lotka_volterra
    ),
    "hmm": Posterior(
        "posteriordb/hmm_example-hmm_example", series.hmm, series.read_y, series.hmm_reference, series.hmm_sites
    ),
    "mix": Posterior(
        "posteriordb/low_dim_gauss_mix-low_dim_gauss_mix", hierarchical.mixture, hierarchical.read_mixture
    ),
    "diamonds": Posterior("posteriordb/diamonds-diamonds", regressions.diamonds, regressions.read_diamonds),
    "earn": Posterior(
        "posteriordb/earnings-logearn_interaction", regressions.flat_regression, regressions.read_earnings
    ),
    "kilp": Posterior("posteriordb/kilpisjarvi_mod-kilpisjarvi", regressions.kilpisjarvi, regressions.read_kilpisjarvi),
    "nes": Posterior("posteriordb/nes2000-nes", regressions.flat_regression, regressions.read_nes),
    "sblri": Posterior("posteriordb/sblri-blr", regressions.blr, regressions.read_blr),
    "brown": Posterior(
        "inference_gym/brownian_motion_missing_middle_observations",
        series.brownian,
        series.read_brownian,
        ground_truth={"x": "IDENTITY"},
        log_evidence=5.613,
    ),
    "german_ig": Posterior(
        "inference_gym/german_credit_numeric_logistic_regression",
        regressions.logistic,
        regressions.read_german_gym,
        ground_truth={"w": "IDENTITY"},
        log_evidence=-529.174,
    ),
    "eight_ig": Posterior(
        "inference_gym/eight_schools",
        hierarchical.eight_log_scale,
        hierarchical.read_eight_gym,
        ground_truth={
            "avg": "IDENTITY_AVG_EFFECT",
            "log_sd": "IDENTITY_LOG_STDDEV",
            "theta": "IDENTITY_SCHOOL_EFFECTS",
        },
    ),
    "sv": Posterior(
        "inference_gym/stochastic_volatility_log_sp500_small",
        series.volatility,
        series.read_volatility,
        ground_truth={
            "phi": "IDENTITY_PERSISTENCE_OF_VOLATILITY",
            "m": "IDENTITY_MEAN_LOG_VOLATILITY",
            "s": "IDENTITY_WHITE_NOISE_SHOCK_SCALE",
            "h": "IDENTITY_LOG_VOLATILITY",
        },
        exact={"m": (-7.6695, 1.3356, 27.8)},  # by volatility.py; published are -7.661 and 1.187
    ),
    "lorenz": Posterior(
        "inference_gym/convection_lorenz_bridge",
        series.lorenz,
        series.read_lorenz,
        ground_truth={"state": "IDENTITY"},
    ),
    "german": Posterior("logistic/german_credit", regressions.logistic, regressions.read_german, log_evidence=-585.094),
    "cancer": Posterior("logistic/breast_cancer", regressions.logistic, regressions.read_cancer),
}

__all__ = ["POSTERIORS", "Posterior", "standard_error"]
