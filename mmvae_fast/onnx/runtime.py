"""Serves an exported model with NumPy and ONNX Runtime alone: no torch, no onnx, no mmvae_fast kernels."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvae_fast import _words
from mmvae_fast.onnx import guard, integers, noise, raw
from mmvae_fast.onnx import inputs as checks
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx import texts as texting
from mmvae_fast.onnx.errors import BadDtype, BadShape, BadValue, MissingInput, UnknownModality, unknown
from mmvae_fast.onnx.manifest import (
    CLASSIFIER_PART,
    CYCLEGAN_SYSTEM,
    FUSION_PART,
    GAN_SYSTEM,
    GENERATOR_PART,
    NO_PRIOR,
    PRIOR_PART,
    Manifest,
    ModalitySpec,
    begin_part,
    code_output,
    decoder_part,
    encoder_part,
    features_part,
    lift_part,
    private_noise,
    step_part,
    translator_part,
)
from mmvae_fast.onnx.sessions import Sessions

_MOST_THREADS = 2**10  # ONNX Runtime starts them all, and crashes where the system refuses

Inputs = Mapping[str, Any]
Mask = Mapping[str, Any] | Any | None


class Posterior(NamedTuple):
    """q(z | what was observed): its moments, and the latent to decode where one has to stand for all."""

    mu: np.ndarray
    """Mean [B, D]."""
    logvar: np.ndarray
    """Log of the variance [B, D]."""
    kl: np.ndarray
    """KL divergence to N(0, I) in nats [B], of the Gaussian with these moments: less than a mixture's own."""
    point: np.ndarray
    """[B, D]: the mean; of a mixture that of its most certain expert."""


@dataclass(frozen=True)
class _Inferred:
    """What the fusion says of a batch."""

    posterior: Posterior
    z: np.ndarray
    codes: Mapping[str, np.ndarray]
    """By modality, what its decoder takes, where the latent alone is not all."""
    context: np.ndarray | None = None
    prior: tuple[np.ndarray, np.ndarray] | None = None
    """Of a conditional model: mu and logvar of p(z | condition)."""


class Runtime:
    """An exported model, ready to serve. Make one with :meth:`load`; any number of threads may share it.

    ``inputs`` is a dict name -> array [B, *shape] that holds the modalities there are; ``mask`` says which rows of them
    are observed (None: all; name -> bool [B]; or bool [B, M] with the columns in the order of ``modalities``). An
    encoder runs on observed rows only and is not even loaded before there is one. A row with nothing observed gets the
    prior.

    Arrays of numbers are what the model takes, whatever the bundle says of reading. :meth:`read` makes them of raw
    values (files, texts, numbers in their own units), :meth:`show` goes back. What can only be raw, the verbs read by
    themselves: texts, paths, bytes of files, and uint8 pixels [B, H, W(, C)]; a lone one is a batch of one.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        threads: int = 1,
        *,
        spin: bool = False,
        timeout: float | None = None,
    ):
        self.folder = Path(folder).absolute()  # parts open later, maybe from elsewhere, or in another process
        self.manifest = manifest
        self.modalities: dict[str, ModalitySpec] = {m.name: m for m in manifest.modalities}
        self.latent_dim = manifest.latent_dim
        self._tokenizers: dict[str, Any] = {}
        self._readings: dict[str, raw.Reading] = {}
        self._sessions = Sessions(self.folder, manifest, threads, spin, timeout)

    @staticmethod
    def load(
        folder: str | Path, *, threads: int | None = None, spin: bool = False, timeout: float | None = None
    ) -> Runtime:
        """Check a bundle (manifest, and SHA-256 of every file) and get ready to run it; parts open on first use.

        Args:
            folder: what ``export_onnx`` wrote.
            threads: threads one call may use; None is 1, 0 is as many as there are cores. These models are small: a
                second thread inside an operator rarely pays, requests served in parallel by your own threads do.
            spin: let idle threads of a call burn their cores while they wait, which saves microseconds.
            timeout: seconds that one part may run; what takes longer is stopped. Costs a thread a call.

        Raises:
            BundleError: damaged, incomplete, foreign or of another version; names the file. Later, from the first call
                that needs it, for a file that is no longer what it was here.
        """
        threads = 1 if threads is None else integers.count("threads", threads)
        if timeout is not None and (
            isinstance(timeout, bool)
            or not isinstance(timeout, (int, float))
            or not 0 < timeout <= threading.TIMEOUT_MAX
        ):
            raise BadValue(
                f"timeout is {timeout!r}, expected a number of seconds above 0, or None "
                f"(at most {threading.TIMEOUT_MAX:g})"
            )
        if threads > _MOST_THREADS:
            raise BadValue(f"threads is {threads}, expected at most {_MOST_THREADS}")
        manifest = manifests.read(folder)
        guard.check_manifest(manifest, str(Path(folder) / manifests.FILE_NAME))
        for name in manifest.files:
            guard.check_size(Path(folder) / name)
        manifests.check_files(manifest, folder)
        return Runtime(folder, manifest, threads, spin=bool(spin), timeout=timeout)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizers": {}, "_readings": {}}  # read again where it is needed

    def __repr__(self) -> str:
        kinds = ", ".join(f"{m.name}: {m.kind} {list(m.shape)}" for m in self.modalities.values())
        return f"Runtime({self.manifest.model}, latent_dim={self.latent_dim}, {{{kinds}}}, folder={str(self.folder)!r})"

    @property
    def info(self) -> dict[str, Any]:
        """The manifest as plain data, and which parts are open."""
        return {**self.manifest.to_json(), "folder": str(self.folder), "loaded_parts": sorted(self._sessions.open)}

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Inputs, mask: Mask = None) -> Posterior:
        """The posterior given what is there: mu, logvar [B, D], kl [B]. Same as ``model.encode``.

        Raises:
            InputError: unknown modality, wrong shape or dtype, NaN in an observed row, ...; a ValueError naming it.
        """
        return self._infer(inputs, mask).posterior

    def posterior_sample(
        self, inputs: Inputs, n_samples: int, seed: int | None = None, mask: Mask = None
    ) -> np.ndarray:
        """Samples z [K, B, D] of the posterior; equal to ``model.encode(batch, mask).sample(n_samples, seed=seed)``."""
        return self._infer(inputs, mask, sampling=(integers.count("n_samples", n_samples), _seed(seed))).z

    def predict_proba(self, inputs: Inputs, mask: Mask = None) -> np.ndarray:
        """Probabilities [B, C] of a classifier's classes, given what each row has.

        Raises:
            InputError: a bundle without a classifier.
        """
        if CLASSIFIER_PART not in self.manifest.parts:
            raise BadValue(f"the bundle holds a {self.manifest.model}, expected a FusionClassifier to classify with")
        arrays, observed = checks.batch(self.modalities, self._read(inputs), mask)
        mu, logvar, _ = self._encode(arrays, observed)
        if not len(mu):
            return np.zeros((0, len(self.manifest.classes or ())), np.float32)
        return self._answers(CLASSIFIER_PART, "classes", mu, logvar, observed)[0]

    def classify(self, inputs: Inputs, mask: Mask = None) -> list[str]:
        """The likeliest class of each row, by name."""
        classes = self.manifest.classes or ()
        return [classes[i] for i in self.predict_proba(inputs, mask).argmax(-1).tolist()]

    def fuse(self, mu: Any, logvar: Any, mask: Any) -> Posterior:
        """The posterior of experts of your own: mu, logvar [B, M, D], padded with anything to the widest modality's;
        mask bool [B, M]. Not of models whose complete rows have an encoder of their own."""
        self._need(FUSION_PART, "fuse")
        if any(m.features for m in self.modalities.values()):
            raise BadValue(
                f"fuse: {self.manifest.model} has a joint encoder, whose features fuse does not take: encode"
            )
        given, observed = checks.experts(mu, logvar, mask, self._experts_shape)
        return self._fuse(*given, observed, None, None, None).posterior

    def decode(
        self,
        z: Any,
        to: str | Sequence[str] | None = None,
        *,
        params: bool = False,
        condition: Inputs | None = None,
        mask: Mask = None,
    ) -> dict[str, np.ndarray]:
        """Decode z [..., D] to modalities (default all): name -> array [..., *shape] in data space.

        A modality with a private latent of P dimensions also takes z [..., D + P]; without it, its prior's mean.

        Args:
            params: give the likelihood's raw parameters [..., *param_shape] instead (logits or means).
            condition, mask: of a conditional model (CVAE), what is given, of B rows, for z [..., B, D].
        """
        self._need(FUSION_PART, "decode")
        names = checks.targets(self.modalities, to)
        conditional = self.manifest.context_dim > 0
        private = () if conditional else tuple(self._private_dim(n) + self.latent_dim for n in names)
        z = checks.latents(z, self.latent_dim, *private)
        context = None
        if condition is not None:
            context = self._given(condition, mask).context
            if context is None or z.ndim < 2 or z.shape[-2] != len(context):
                expected = f"[..., {0 if context is None else len(context)}, {self.latent_dim}]"
                raise BadShape(f"z has shape {list(z.shape)}, expected {expected} for this condition")
        return {name: self._decode(self._code(z, name, context), self.modalities[name], params) for name in names}

    def reconstruct(
        self,
        inputs: Inputs,
        mask: Mask = None,
        to: str | Sequence[str] | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Decode the posterior's point: every modality (or those in ``to``) as the model imagines it, missing ones too.

        Private latents are their posterior's mean; of a modality that a row lacks their prior's, or with a ``seed`` a
        draw of it, the model's own.
        """
        names = checks.targets(self.modalities, to)
        inferred = self._infer(inputs, mask, private_seed=None if seed is None else integers.seed(seed))
        codes = {name: inferred.codes.get(name, inferred.posterior.point) for name in names}
        return {name: self._decode(code, self.modalities[name], False) for name, code in codes.items()}

    def cross_generate(self, inputs: Inputs, to: str, mask: Mask = None, *, seed: int | None = None) -> np.ndarray:
        """One modality from whatever is there, by the posterior's point: [B, *shape]. Same as ``model.translate``."""
        if not isinstance(to, str):
            raise BadDtype(f"to is a {type(to).__name__}, expected one modality's name (reconstruct takes several)")
        if self.manifest.system == CYCLEGAN_SYSTEM:
            return self._translated(inputs, to)
        return self.reconstruct(inputs, mask, to, seed=seed)[to]

    def sample(
        self,
        n: int,
        seed: int | None = None,
        to: str | Sequence[str] | None = None,
        *,
        condition: Any = None,
        mask: Mask = None,
    ) -> dict[str, np.ndarray]:
        """Decode n samples of the prior, [n, *shape]; with a seed, what ``model.sample(n, seed=seed)`` gives.

        Args:
            condition, mask: of a conditional model (CVAE), what is given: n samples for each of its rows,
                [n, B, *shape]. Of a conditional GAN an array, labels [n] or embeddings [n, C]; None draws labels.

        Raises:
            InputError: a model without a prior (Autoencoder), or a condition for one that takes none.
        """
        names, n, seed = checks.targets(self.modalities, to), integers.count("n", n), _seed(seed)
        guard.check_asked("sample: n", n, [self.modalities[name] for name in names], self.latent_dim)
        if self.manifest.system == GAN_SYSTEM:
            return {name: self._generated(n, seed, condition) for name in names}
        if self.manifest.prior == NO_PRIOR:
            raise BadValue(f"sample: a {self.manifest.model} has no prior to sample from")
        if condition is not None:
            given = self._given(condition, mask)
            assert given.prior is not None
            mu, logvar = given.prior
            z = mu + np.exp(np.float32(0.5) * logvar) * noise.make("normal", seed, (n, *mu.shape))
            codes = {name: self._code(z, name, given.context) for name in names}
        elif PRIOR_PART in self.manifest.parts and n:
            found = self._run(PRIOR_PART, *self._noise(PRIOR_PART, {"batch": n}, seed, seed))
            drawn = dict(zip((t.name for t in self.manifest.parts[PRIOR_PART].outputs), found, strict=True))
            codes = {name: drawn.get(code_output(name), drawn["z"]) for name in names}
        else:
            z = noise.philox_normal(seed, n, self.latent_dim)
            codes = {name: self._code(z, name, None) for name in names}
        return {name: self._decode(code, self.modalities[name], False) for name, code in codes.items()}

    # --- raw values ---------------------------------------------------------------------------------------------------

    def read(self, name: str, values: Any) -> np.ndarray:
        """Raw values of a modality -> what the model takes [B, *shape], as its reader made it in training.

        Args:
            values: a list or array of B of them. Numbers of a vector, counts or a series [T, channels] in their own
                units, NaN (of a vector that has gaps) what is missing; texts and documents as str; pictures as pixels
                [H, W(, C)] (uint8, or 0 to 1), sounds as (waveform, rate in Hz); pictures, sounds and series as paths,
                the first two as bytes, too. A lone text, file or sound is a batch of one.

        Raises:
            InputError: a value that cannot be read, by row; or the bundle does not say how the modality was read.
            ImportError: an extra ("image", "audio", "text", "delay") that is not installed; only what is asked for.
        """
        return self._reading(name).read(values)

    def show(self, name: str, samples: Any) -> Any:
        """Samples [B, *shape] as the model takes and gives them -> raw values: numbers in their own units (float64
        [B, ...]), texts, the heaviest words of documents, uint8 pixels [B, H, W, C], sounds as a list of (waveform,
        rate in Hz). As they are where the bundle does not say how the modality was read."""
        return self._reading(name).show(samples)

    def _reading(self, name: str) -> raw.Reading:
        if name not in self.modalities:
            raise UnknownModality(unknown("modality", name, self.modalities))
        if name not in self._readings:
            self._readings[name] = raw.Reading(self.modalities[name], self.tokenize, self.detokenize)
        return self._readings[name]

    # --- text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], modality: str | None = None, *, truncate: bool = False) -> np.ndarray:
        """Texts -> token ids int64 [B, length], padded with 0, as the modality's own tokenizer has it (of words:
        whitespace-separated, unknown ones become 1).

        ``modality`` may be left out when only one has a vocabulary.

        Raises:
            InputError: a text of more than ``length`` words, unless ``truncate``; or no vocabulary in the bundle.
        """
        spec = self._text(modality)
        where = f"modality {spec.name!r}"
        if spec.tokens is not None:
            own = self._tokenizer(spec)
            return texting.tokenize(texts, own, spec.tokens, spec.shape[0], truncate=truncate, where=where)
        ids = {word: i for i, word in enumerate(spec.vocabulary or ())}
        try:
            return _words.tokenize(texts, ids, spec.shape[0], truncate=truncate, where=where)
        except TypeError as error:
            raise BadDtype(str(error)) from None
        except ValueError as error:
            raise BadShape(str(error)) from None

    def detokenize(self, ids: Any, modality: str | None = None) -> list[str]:
        """Texts of token ids [B, length], without padding."""
        spec = self._text(modality)
        ids = checks.samples(spec, ids)
        checks.check_values(spec, ids, np.arange(len(ids)))
        if spec.tokens is not None:
            return texting.detokenize(ids, self._tokenizer(spec), spec.tokens)
        return _words.detokenize(ids, spec.vocabulary or ())

    def generate(
        self,
        inputs: Inputs | None = None,
        to: str | None = None,
        mask: Mask = None,
        *,
        z: Any = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> list[str]:
        """Texts token by token, from whatever is there, or from latents z [N, D] of your own: N strings.

        The same tokens as ``Language.generate`` of the same seed. Row n's text depends on its latent, the seed and n
        alone.

        Args:
            to: the text modality; may be left out when there is one.
            temperature: 0 takes the most probable token each time; otherwise logits are divided by it and drawn from.
            top_k: draw from the so many most probable tokens.
            top_p: draw from the most probable tokens that together reach this probability.

        Raises:
            InputError: no text that is generated token by token, or an option out of range.
        """
        names = [m.name for m in self.modalities.values() if m.tokens is not None and m.decodable]
        if to is None and len(names) != 1:
            raise BadValue(f"to: {len(names)} modalities are generated token by token ({names}), name the one you mean")
        name = names[0] if to is None else to
        if name not in names:
            raise UnknownModality("to: " + unknown("modality generated token by token", name, names))
        if (inputs is None) == (z is None):
            raise MissingInput("generate: pass either inputs, or z, latents of your own")
        if z is None:
            assert inputs is not None
            inferred = self._infer(inputs, mask)
            code = inferred.codes.get(name, inferred.posterior.point)
        else:
            found = checks.latents(z, self.latent_dim, self._private_dim(name) + self.latent_dim)
            code = self._code(found.reshape(-1, found.shape[-1]), name, None)
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": _seed(seed)}
        return self.detokenize(self._tokens(code, self.modalities[name], **options), name)

    def _text(self, modality: str | None) -> ModalitySpec:
        texts = [m.name for m in self.modalities.values() if _is_text(m)]
        if modality is None and len(texts) != 1:
            raise BadValue(f"modality: {len(texts)} modalities have a vocabulary ({texts}), name the one you mean")
        name = texts[0] if modality is None else modality
        if name not in texts:
            raise UnknownModality(unknown("modality with a vocabulary", name, texts))
        return self.modalities[name]

    def _tokenizer(self, spec: ModalitySpec) -> Any:
        assert spec.tokens is not None
        if spec.name not in self._tokenizers:
            content = self._sessions.read(spec.tokens.file)
            self._tokenizers[spec.name] = texting.tokenizer(spec.tokens.file, content.decode("utf-8", "replace"))
        return self._tokenizers[spec.name]

    def _tokens(self, code: np.ndarray, spec: ModalitySpec, **options: Any) -> np.ndarray:
        """Ids [N, length] of codes [N, C]."""
        assert spec.tokens is not None

        def step(last: np.ndarray, t: int, past: np.ndarray) -> list[np.ndarray]:
            logits, present = self._run(step_part(spec.name), code, last, np.asarray(t, np.int64), past)
            guard.check_finite(_named(spec.name), present)  # of the logits, those of ids that no text holds are -inf
            return [logits, present]

        def begin() -> np.ndarray:
            return self._run(begin_part(spec.name), code)[0]

        options["timeout"] = self._sessions.timeout
        return texting.generate(begin, step, len(code), spec.shape[0], spec.tokens, **options)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _generated(self, n: int, seed: int, condition: Any) -> np.ndarray:
        """A GAN's samples."""
        spec = next(iter(self.modalities.values()))
        classes, dim = len(self.manifest.classes or ()), self.manifest.condition_dim
        given: list[np.ndarray] = []
        if not classes and not dim:
            if condition is not None:
                raise BadValue("condition is given, but this GAN has none")
        elif condition is None:
            if dim:
                raise MissingInput(f"condition is None, expected embeddings [n, {dim}]")
            u = noise.philox_uniform(noise.branch(seed, 1), n, 1)[:, 0]
            given = [np.minimum((u * np.float32(classes)).astype(np.int64), classes - 1)]
        else:
            given = [checks.labels(condition, n, classes) if classes else checks.embeddings(condition, n, dim)]
        if n == 0:
            return np.zeros((0, *spec.shape), dtype=spec.dtype)
        return self._answers(
            GENERATOR_PART, _named(spec.name), *given, *self._noise(GENERATOR_PART, {"batch": n}, seed, None)
        )[0]

    def _translated(self, inputs: Inputs, to: str) -> np.ndarray:
        """A CycleGAN's translation."""
        checks.targets(self.modalities, to)
        (source,) = (name for name in self.modalities if name != to)
        inputs = self._read(inputs)
        if not isinstance(inputs, Mapping) or source not in inputs:
            raise MissingInput(f"inputs: expected {source!r} to translate to {to!r}")
        x = checks.samples(self.modalities[source], inputs[source])
        checks.check_values(self.modalities[source], x, np.arange(len(x)))
        if not len(x):
            return np.zeros((0, *self.modalities[to].shape), dtype=self.modalities[to].dtype)
        return self._answers(translator_part(to), _named(to), x)[0]

    def _read(self, inputs: Inputs) -> Inputs:
        """With texts and pictures as arrays."""
        return raw.arrays(self.modalities, inputs, self.read)

    def _need(self, part: str, verb: str) -> None:
        if part not in self.manifest.parts:
            can = {GAN_SYSTEM: "sample", CYCLEGAN_SYSTEM: "cross_generate"}.get(self.manifest.system, "encode")
            raise BadValue(f"{verb}: a {self.manifest.model} has no part for it, it can {can}")

    @property
    def _experts_shape(self) -> tuple[int, int]:
        """[M, E]: how many experts, and what they are padded to."""
        widest = max(m.expert_dim or self.latent_dim for m in self.modalities.values())
        return len(self.modalities), widest

    def _private_dim(self, name: str) -> int:
        spec = self.modalities[name]
        return 0 if spec.lifted else (spec.code_dim or self.latent_dim) - self.latent_dim

    def _given(self, condition: Inputs, mask: Mask) -> _Inferred:
        """What follows from a condition alone."""
        conditions = [name for name, spec in self.modalities.items() if not spec.decodable]
        if not self.manifest.context_dim:
            raise BadValue(f"condition is given, but {self.manifest.model} takes none")
        if not isinstance(condition, Mapping):
            raise MissingInput(f"condition is a {type(condition).__name__}, expected a dict of modality name -> array")
        for name in condition:
            if name not in self.modalities:
                raise UnknownModality("condition: " + unknown("modality", name, conditions))
        some = {name: x for name, x in condition.items() if name in conditions}
        if not some:
            raise MissingInput(f"condition holds {list(condition)}, expected some of {conditions}")
        return self._infer(some, mask)

    def _infer(
        self,
        inputs: Inputs,
        mask: Mask,
        sampling: tuple[int, int] | None = None,
        private_seed: int | None = None,
    ) -> _Inferred:
        """The fusion's answer, with z [K, B, D] for ``sampling`` = (K, seed)."""
        self._need(FUSION_PART, "encode")
        arrays, observed = checks.batch(self.modalities, self._read(inputs), mask)
        mu, logvar, features = self._encode(arrays, observed)
        return self._fuse(mu, logvar, observed, features, sampling, private_seed)

    def _encode(
        self, arrays: Mapping[str, np.ndarray], observed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Experts mu, logvar [B, M, E], and features [2, B, M, D] if complete rows have some; missing ones are 0."""
        mu = np.zeros((len(observed), *self._experts_shape), dtype=np.float32)
        logvar, complete = np.zeros_like(mu), np.flatnonzero(observed.all(1))
        features = None
        if any(spec.features for spec in self.modalities.values()):
            features = np.zeros((2, *observed.shape, self.latent_dim), dtype=np.float32)
        for m, (name, spec) in enumerate(self.modalities.items()):
            present, width = np.flatnonzero(observed[:, m]), spec.expert_dim or self.latent_dim
            if not len(present):
                continue
            x = arrays[name] if len(present) == len(observed) else arrays[name][present]
            checks.check_values(spec, x, present)
            mu[present, m, :width], logvar[present, m, :width] = self._answers(encoder_part(name), _named(name), x)
            if features is not None and len(complete):
                whole = arrays[name] if len(complete) == len(observed) else arrays[name][complete]
                features[0, complete, m], features[1, complete, m] = self._answers(
                    features_part(name), _named(name), whole
                )
        return mu, logvar, features

    def _fuse(
        self,
        mu: np.ndarray,
        logvar: np.ndarray,
        observed: np.ndarray,
        features: np.ndarray | None,
        sampling: tuple[int, int] | None,
        private_seed: int | None,
    ) -> _Inferred:
        rows, (n_samples, seed) = len(mu), sampling or (1, None)
        outputs, sizes = self.manifest.parts[FUSION_PART].outputs, {"batch": rows, "samples": max(n_samples, 1)}
        if rows == 0:  # nothing to compute for: ONNX Runtime gives some empty outputs a wrong shape
            sizes["samples"] = n_samples
            shapes = {t.name: [sizes[d] if isinstance(d, str) else d for d in t.shape] for t in outputs}
            found = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        else:
            drawn = self._noise(FUSION_PART, sizes, seed, private_seed)
            values = self._answers(
                FUSION_PART, "posterior", mu, logvar, observed, *(() if features is None else features), *drawn
            )
            found = dict(zip((t.name for t in outputs), values, strict=True))
        posterior = Posterior(found["joint_mu"], found["joint_logvar"], found["kl"], found["point"])
        codes = {name: found[code_output(name)] for name in self.modalities if code_output(name) in found}
        prior = (found["prior_mu"], found["prior_logvar"]) if "context" in found else None
        return _Inferred(posterior, found["z"][:n_samples], codes, found.get("context"), prior)

    def _noise(
        self, part: str, sizes: Mapping[str, int], seed: int | None, private_seed: int | None
    ) -> list[np.ndarray]:
        """The noise a part takes, in order: made from a seed, or none. Private latents' has a seed of its own."""
        spec = self.manifest.parts[part]
        if spec.noise and self.manifest.sampling == "philox":
            own = seed if seed is not None else private_seed
            count = sizes.get("samples", sizes["batch"])
            return noise.seeded(own, count)
        shapes = {t.name: [sizes[d] if isinstance(d, str) else d for d in t.shape] for t in spec.inputs}
        private = {private_noise(name) for name in self.modalities}
        made = []
        for n in spec.noise:
            own = private_seed if n.name in private else seed
            shape = shapes[n.name]
            made.append(
                noise.none(n.kind, shape) if own is None else noise.make(n.kind, noise.branch(own, n.branch), shape)
            )
        return made

    def _code(self, z: np.ndarray, name: str, context: np.ndarray | None) -> np.ndarray:
        """What a modality's decoder takes, [..., C], of latents [..., D]."""
        spec = self.modalities[name]
        width = spec.code_dim or self.latent_dim
        if spec.lifted:
            flat = z.reshape(-1, self.latent_dim)
            lifted = self._run(lift_part(name), flat)[0] if len(flat) else np.zeros((0, width), np.float32)
            return lifted.reshape(*z.shape[:-1], width)
        if z.shape[-1] == width:
            return z
        if z.shape[-1] != self.latent_dim:  # with a private latent of another modality's size
            raise BadShape(
                f"z has {z.shape[-1]} dimensions, expected {self.latent_dim} or {width} for modality {name!r}"
            )
        rest = np.zeros((*z.shape[:-1], width - self.latent_dim), np.float32)
        if context is not None:
            rest = np.broadcast_to(context, rest.shape)
        return np.concatenate([z, rest], -1)

    def _decode(self, code: np.ndarray, spec: ModalitySpec, params: bool) -> np.ndarray:
        if spec.tokens is not None:
            if params:
                raise BadValue(f"params: those of modality {spec.name!r} are of one token after the other, generate it")
            ids = self._tokens(np.ascontiguousarray(code.reshape(-1, code.shape[-1])), spec)
            return ids.reshape(*code.shape[:-1], *spec.shape)
        part = self.manifest.parts[decoder_part(spec.name)]
        output = part.outputs[0 if params else 1]
        shape, flat = spec.param_shape if params else spec.shape, code.reshape(-1, code.shape[-1])
        if len(flat) == 0:
            return np.zeros((*code.shape[:-1], *shape), dtype=output.dtype)
        found = self._answers(decoder_part(spec.name), _named(spec.name), flat, outputs=[output.name])
        return found[0].reshape(*code.shape[:-1], *shape)

    def _answers(
        self, part: str, where: str, *values: np.ndarray, outputs: list[str] | None = None
    ) -> list[np.ndarray]:
        """What a part makes of a caller's values, which has to be numbers."""
        found = self._run(part, *values, outputs=outputs)
        guard.check_finite(where, *found)
        return found

    def _run(self, part: str, *values: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
        return self._sessions.run(part, values, outputs)


def _named(modality: str) -> str:
    return f"modality {modality!r}"


def _is_text(spec: ModalitySpec) -> bool:
    return spec.tokens is not None or (spec.vocabulary is not None and spec.dtype == "int64")


def _seed(seed: int | None) -> int:
    return secrets.randbits(64) if seed is None else integers.seed(seed)
