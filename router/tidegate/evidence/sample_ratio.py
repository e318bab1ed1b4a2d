"""Sample-ratio mismatch: do the versions get the shares of requests that they are meant to get?

If not, something other than the weights decides where requests go, such as a pinned connection or a
broken sticky rule, and then the versions' users differ and no comparison is fair (Fabijan et al.
2019, "Diagnosing sample ratio mismatch in online controlled experiments"). With the intended share
θ of a window, the candidate's number among N requests is binomial. The bets are likelihood ratios
of other odds, tested sequentially (Lindon and Malek 2022, arXiv 2011.03567):

    e = (θ'/θ₀)^N_c · ((1 − θ')/(1 − θ₀))^N_b

Two allowances keep it quiet where nothing is wrong. A share whose odds are off by at most 10 % is
acceptable: θ₀ is that edge, and the ratio is monotone, so the bet is valid for all shares within.
And requests come in clumps, such as retries of one caller, so a window counts as if it had a
quarter of its requests: e^(1/4) is still an e-value (Jensen), and stays one, nearly, for clumps of
four requests.
"""

from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.assessment import SampleRatio
from tidegate.evidence.bets import log_mean, log_prior
from tidegate.evidence.processes import capped_exp

__all__ = ["SampleRatioState"]

_LEVEL: Final = 1e-4
_ALLOWED: Final = 1.1
_CLUMP: Final = 4.0
_ODDS: Final = np.array((0.001, 0.25, 0.5, 0.75, 1.35, 2.0, 4.0, 20.0))
_EDGES: Final = np.where(_ODDS < 1.0, 1.0 / _ALLOWED, _ALLOWED)
_PRIOR: Final = log_prior((1,) * len(_ODDS))


class SampleRatioState(msgspec.Struct, frozen=True):
    """What is remembered of the split.

    Attributes:
        candidate: Requests of the candidate.
        requests: Requests of both versions.
        intended: The requests that the candidate was meant to get.
        stakes: The logarithm of what each bet holds.
    """

    candidate: int = 0
    requests: int = 0
    intended: float = 0.0
    stakes: tuple[float, ...] = (0.0,) * len(_ODDS)

    def observe(self, candidate: int, baseline: int, share: float) -> "SampleRatioState":
        """Returns the state after a window.

        Args:
            candidate: The candidate's requests.
            baseline: The baseline's requests.
            share: The candidate's intended share of both versions' requests. A window in which
                either was meant to get nothing says nothing.
        """
        requests = candidate + baseline
        if not 0.0 < share < 1.0 or not requests:
            return self
        odds = share / (1.0 - share)
        null, other = _EDGES * odds, _ODDS * odds
        growth = candidate * np.log(other / null) - requests * np.log((1 + other) / (1 + null))
        return SampleRatioState(
            self.candidate + candidate,
            self.requests + requests,
            self.intended + requests * share,
            tuple((np.array(self.stakes) + growth / _CLUMP).tolist()),
        )

    def assess(self) -> SampleRatio:
        """Returns whether a mismatch is proven."""
        e = capped_exp(float(log_mean(np.array(self.stakes), _PRIOR)))
        return SampleRatio(
            e=e,
            threshold=1.0 / _LEVEL,
            intended=self.intended / self.requests if self.requests else None,
            observed=self.candidate / self.requests if self.requests else None,
            mismatch=e >= 1.0 / _LEVEL,
        )
