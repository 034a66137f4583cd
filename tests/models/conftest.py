"""A small model of every kind over four kinds of data, in float64, and batches for it."""

import pytest
import torch

from mmvae_fast.modalities import Audio, Image, Text, Vector
from mmvae_fast.models import (
    CMVAE,
    CRMVAE,
    CVAE,
    DMVAE,
    IWAE,
    JMVAE,
    JNF,
    MCVAE,
    MHVAE,
    MMJSD,
    MMVAE,
    MVAE,
    MVTCAE,
    TELBO,
    VAE,
    BetaVAE,
    FusedVAE,
    MMVAEPlus,
    MoPoE,
    Nexus,
    WeightedPoE,
)

ROWS = 6
SUBSETS = [["image"], ["text", "vector"], ["image", "text", "audio"], ["audio"]]
NEXUS = {
    "modality_dim": {"image": 3, "text": 2, "audio": 5, "vector": 4},
    "message_dim": 6,
    "hidden": (7,),
    "gamma": {"image": 1.0, "text": 0.5, "audio": 2.0, "vector": 1.0},
    "scale": 0.8,
    "dropout": 0.5,
}
PRIVATE = {"image": 3, "text": 0, "audio": 1, "vector": 2}


def modalities():
    return {
        "image": Image((1, 2, 2), hidden=(6,)),
        "text": Text(5, 3, hidden=(6,), embedding_dim=2),
        "audio": Audio((2, 3), scale=0.7, hidden=(6,)),
        "vector": Vector(4, likelihood="laplace", scale=1.3, hidden=(6,)),
    }


JOINT = {"joint_hidden": (7,)}
FLOWS = {**JOINT, "flow_hidden": (8,), "hmc_steps": 2, "hmc_leapfrogs": 2}


def second_stage(model):
    model.start_stage(2)
    return model


def one():
    return {"vector": modalities()["vector"]}


ALONE = {  # models of one modality
    "VAE": lambda **o: VAE(one(), 5, **o),
    "BetaVAE": lambda **o: BetaVAE(one(), 5, **o),
    "IWAE": lambda **o: IWAE(one(), 5, n_samples=3, **o),
    "IWAE dreg": lambda **o: IWAE(one(), 5, n_samples=3, estimator="dreg", **o),
}
MODELS = {
    "MVAE": lambda **o: MVAE(modalities(), 5, **o),
    "MVAE+2": lambda **o: MVAE(modalities(), 5, n_random_subsets=2, **o),
    "MoPoE": lambda **o: MoPoE(modalities(), 5, **o),
    "MVTCAE": lambda **o: MVTCAE(modalities(), 5, **o),
    "MMVAE": lambda **o: MMVAE(modalities(), 5, n_samples=3, **o),
    "MMVAE tight": lambda **o: MMVAE(modalities(), 5, n_samples=3, tight=True, **o),
    "MMVAE iwae": lambda **o: MMVAE(modalities(), 5, n_samples=3, estimator="iwae", family="normal", **o),
    "MMVAE iwae tight": lambda **o: MMVAE(modalities(), 5, n_samples=3, estimator="iwae", tight=True, **o),
    "MMVAE stl": lambda **o: MMVAE(modalities(), 5, n_samples=3, estimator="stl", **o),
    "WeightedPoE": lambda **o: WeightedPoE(modalities(), 5, **o),
    "moments": lambda **o: FusedVAE(modalities(), 5, fusion="moments", **o),
    "MoPoE private": lambda **o: MoPoE(modalities(), 5, private_dim=PRIVATE, beta_private=0.6, **o),
    "MMVAE+": lambda **o: MMVAEPlus(modalities(), 5, n_samples=3, private_dim=PRIVATE, **o),
    "MMVAE+ iwae": lambda **o: MMVAEPlus(
        modalities(), 5, n_samples=3, estimator="iwae", family="normal", learned_prior=True, **o
    ),
    "CMVAE": lambda **o: CMVAE(modalities(), 5, n_samples=3, n_clusters=4, private_dim=PRIVATE, **o),
    "CMVAE iwae": lambda **o: CMVAE(
        modalities(), 5, n_samples=3, n_clusters=4, learned_scale=True, estimator="iwae", private_dim=2, **o
    ),
    "DMVAE": lambda **o: DMVAE(modalities(), 5, private_dim=PRIVATE, **o),
    "wasserstein": lambda **o: FusedVAE(modalities(), 5, fusion="wasserstein", **o),
    "MMJSD": lambda **o: MMJSD(modalities(), 5, **o),
    "MCVAE": lambda **o: MCVAE(modalities(), 5, **o),
    "MCVAE sparse": lambda **o: MCVAE(modalities(), 5, sparse=True, **o),
    "CRMVAE": lambda **o: CRMVAE(modalities(), 5, **o),
    "MHVAE": lambda **o: MHVAE(modalities(), 5, hidden=(6,), **o),
    "MHVAE subsets": lambda **o: MHVAE(modalities(), 5, levels=2, hidden=(), subsets=SUBSETS, **o),
    "Nexus": lambda **o: Nexus(modalities(), 5, **{**NEXUS, **o}),
    "JMVAE": lambda **o: JMVAE(modalities(), 5, **JOINT, **o),
    "JMVAE shared": lambda **o: JMVAE(modalities(), 5, share_encoders=True, **JOINT, **o),
    "TELBO": lambda **o: TELBO(modalities(), 5, **JOINT, **o),
    "TELBO 2": lambda **o: second_stage(TELBO(modalities(), 5, **JOINT, **o)),
    "JNF": lambda **o: JNF(modalities(), 5, **FLOWS, **o),
    "JNF 2": lambda **o: second_stage(JNF(modalities(), 5, **FLOWS, **o)),
    "CVAE": lambda **o: CVAE(modalities(), 5, condition=["vector"], context_dim=3, **JOINT, **o),
    **ALONE,
}


def pytest_generate_tests(metafunc):
    """Every model; without those of one modality if the test uses the fixture ``several``."""
    if "make_model" in metafunc.fixturenames:
        skipped = ALONE if "several" in metafunc.fixturenames else {}
        metafunc.parametrize("make_model", [name for name in MODELS if name not in skipped], indirect=True)


@pytest.fixture
def several():
    """Of tests about what the modalities of a model have to do with each other."""


@pytest.fixture
def make_model(request):
    """A constructor, so that a test can have several equal models: the same weights every time."""

    def make(**options):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return MODELS[request.param](beta=1.7, **options).double()

    return make


@pytest.fixture
def model(make_model):
    return make_model(likelihood_weights="dimension")


def of_the_model(request):
    """The places of its modalities among the four, if the test has a model."""
    alone = hasattr(request.node, "callspec") and request.node.callspec.params.get("make_model") in ALONE
    return [3] if alone else [0, 1, 2, 3]


@pytest.fixture
def batch(request):
    g = torch.Generator().manual_seed(0)
    data = {
        "image": torch.rand(ROWS, 1, 2, 2, generator=g, dtype=torch.float64),
        "text": torch.randint(0, 5, (ROWS, 3), generator=g),
        "audio": torch.randn(ROWS, 2, 3, generator=g, dtype=torch.float64),
        "vector": torch.randn(ROWS, 4, generator=g, dtype=torch.float64),
    }
    return {list(data)[place]: data[list(data)[place]] for place in of_the_model(request)}


@pytest.fixture
def mask(request):
    """Some of everything: a complete row, an empty one, single modalities, pairs."""
    rows = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0]]
    return torch.tensor(rows, dtype=torch.bool)[:, of_the_model(request)]


def moments(posterior):
    """Mean and log-variance, [B, D] each, of whatever encode returns."""
    return posterior.mu, posterior.logvar
