"""The speed we owe, as data: section 6 of the design, row by row, with what is timed for each.

Ratios are contestant / ours for forward+backward with one thread, float32: above 1 ours is faster. "peer" is the maths
as today's libraries write it, "compile" is torch.compile of the best rewrite we know. ``must`` is a promise, ``aim`` is
what a throw-away prototype says is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Goal:
    must: float
    aim: float
    at_most: bool = False  # times are to be small, ratios to be large

    def verdict(self, value: float) -> str:
        def holds(bound: float) -> bool:
            return value <= bound if self.at_most else value >= bound

        if not holds(self.must):
            return "MISSED"
        return "aim met" if self.aim != self.must and holds(self.aim) else "met"


NEVER_SLOWER = Goal(1.0, 1.0)  # than the twin and torch.compile, at any size


@dataclass(frozen=True)
class Work:
    """One thing to time: a case of ``cases.CASES`` at a size, and what is owed there."""

    case: str
    rows: int
    dim: int
    leading: tuple[int, ...] = ()  # sample dimensions in front of the rows (mixtures, likelihoods)
    classes: int = 0  # of a categorical; dim is then the number of symbols of a row
    goals: dict[str, Goal] = field(default_factory=dict)  # contestant -> ratio, forward+backward

    @property
    def size(self) -> str:
        classes = (self.classes,) if self.classes else ()
        return "x".join(str(n) for n in (*self.leading, self.rows, self.dim, *classes))


def owed(peer: tuple[float, float], compile: tuple[float, float]) -> dict[str, Goal]:
    return {"peer": Goal(*peer), "compile": Goal(*compile)}


_POE = owed(peer=(9, 14), compile=(1.8, 3))
_MOPOE = owed(peer=(120, 200), compile=(3.5, 6))
_SUBSETS = owed(peer=(60, 110), compile=(3, 5))
_DENSITY = owed(peer=(7, 13), compile=(1.2, 1.5))
_CATEGORICAL = owed(peer=(4, 6), compile=(1.7, 2.2))
EXPERTS = 5
SAMPLES = 10  # K

ROWS = [
    Work("reparameterize + kl", 64, 64, goals=owed(peer=(3.3, 5), compile=(2.5, 4))),
    Work("reparameterize + kl", 4096, 512, goals=owed(peer=(4.5, 7), compile=(2, 2.5))),
    Work("poe_sample_kl, mask", 64, 64, goals=owed(peer=(6.5, 10), compile=(2.5, 4))),
    Work("poe_sample_kl, mask", 256, 512, goals=_POE),
    Work("poe_sample_kl, mask", 4096, 512, goals=_POE),
    Work("mopoe_sample_kl", 64, 512, goals=_MOPOE),
    Work("mopoe_sample_kl, mask", 64, 512, goals=_MOPOE),
    Work("subset_posteriors", 64, 512, goals=_SUBSETS),
    Work("mixture_log_prob, normal", 64, 512, (EXPERTS, SAMPLES), goals=owed(peer=(25, 40), compile=(4, 7))),
    Work("mixture_log_prob, normal", 64, 64, (EXPERTS, SAMPLES), goals=owed(peer=(9, 15), compile=(2.3, 3.5))),
    Work("log_likelihood, normal", 64, 2352, (SAMPLES,), goals=_DENSITY),
    Work("log_likelihood, laplace", 64, 2352, (SAMPLES,), goals=_DENSITY),
    Work("log_likelihood, bernoulli", 64, 2352, (SAMPLES,), goals=owed(peer=(3, 5), compile=(1.8, 2.4))),
    Work("log_likelihood, categorical", 64, 32, (SAMPLES,), classes=71, goals=_CATEGORICAL),
    Work("log_likelihood, categorical", 64, 784, (SAMPLES,), classes=8, goals=_CATEGORICAL),
]

# Where models live; and from where "never slower" has to hold to where
SMALL = [(128, 64)]
SWEEP = [(16, 8), (64, 64), (128, 64), (256, 512), (1024, 256), (4096, 512)]


def at(case: str, rows: int, dim: int) -> Work:
    """Any case at any size, with nothing owed but never to be slower."""
    leading = (EXPERTS,) if case.startswith("mixture") else ()
    if case.endswith("categorical"):
        return Work(case, rows, max(dim // 8, 1), leading, classes=8)
    return Work(case, rows, dim, leading)


NORMAL_NANOSECONDS = Goal(1.3, 0.9, at_most=True)
NORMAL_SPEEDUP = Goal(3, 3)  # against torch.normal_
TINY_FORWARD = Goal(12, 8, at_most=True)  # microseconds of a call on 2x64
TINY_FORWARD_BACKWARD = Goal(50, 42, at_most=True)
TRAINING_STEP = {  # a step over its encoders and decoders alone
    "tiny": Goal(1.5, 1.3, at_most=True),
    "mlp": Goal(1.08, 1.03, at_most=True),
    "conv": Goal(1.05, 1.02, at_most=True),
}


# --- on an H100-class GPU ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Fraction of the measured copy bandwidth on ideal bytes, at sizes that fill the chip."""

    forward: float
    backward: float


GPU_SHARES = {
    "reparameterize + kl": Share(0.75, 0.85),
    "poe_sample_kl": Share(0.80, 0.80),
    "mopoe_sample_kl": Share(0.50, 0.55),
    "subset_posteriors": Share(0.75, 0.75),
    "mixture_log_prob, normal": Share(0.65, 0.70),
    "log_likelihood, normal": Share(0.85, 0.85),
    "log_likelihood, laplace": Share(0.85, 0.85),
    "log_likelihood, bernoulli": Share(0.80, 0.80),
    "log_likelihood, categorical": Share(0.80, 0.80),
}


def _gpu(peer: float = 0.0, compile: float = 1.0) -> dict[str, Goal]:
    return {"compile": Goal(compile, compile)} | ({"peer": Goal(peer, peer)} if peer else {})


GPU_ROWS = [
    Work("reparameterize + kl", 65536, 512, goals=_gpu(compile=1.1)),
    Work("poe_sample_kl", 16384, 512, goals=_gpu(compile=1.1)),
    Work("mopoe_sample_kl", 4096, 512, goals=_gpu(compile=2.5)),
    Work("subset_posteriors", 4096, 512, goals=_gpu(compile=2.5)),
    Work("mixture_log_prob, normal", 1024, 512, (EXPERTS, SAMPLES), goals=_gpu(compile=2.5)),
    Work("log_likelihood, normal", 1024, 2352, (SAMPLES,), goals=_gpu()),
    Work("log_likelihood, laplace", 1024, 2352, (SAMPLES,), goals=_gpu()),
    Work("log_likelihood, bernoulli", 1024, 2352, (SAMPLES,), goals=_gpu()),
    Work("log_likelihood, categorical", 1024, 784, (SAMPLES,), classes=8, goals=_gpu()),
    # below 100 000 elements everything is launches
    Work("reparameterize + kl", 256, 64, goals=_gpu(compile=2)),
    Work("poe_sample_kl", 256, 64, goals=_gpu(compile=2)),
    Work("mopoe_sample_kl", 256, 64, goals=_gpu(peer=50, compile=2)),
    Work("subset_posteriors", 256, 64, goals=_gpu(peer=50, compile=2)),
    Work("mixture_log_prob, normal", 256, 64, (EXPERTS, SAMPLES), goals=_gpu(peer=50, compile=2)),
]
