"""Runs a bundle where torch cannot be imported: ``python -m mmvae_fast.demo.serve BUNDLE REQUEST ANSWER SEED``.

Started by the demo as a process of its own. REQUEST is an .npz with the modalities' arrays; ANSWER becomes an .npz with
what the Runtime makes of them; timings go to standard output as JSON.
"""

from __future__ import annotations

import sys
from itertools import combinations

_BLOCKED = ("torch", "onnx", "lightning")
SAMPLES = 16


def patterns(names: list[str]) -> list[tuple[str, ...]]:
    """Every way to observe something."""
    return [some for count in range(1, len(names) + 1) for some in combinations(names, count)]


def main(bundle: str, request: str, answer: str, seed: int) -> None:
    """Encode the request and decode it again, from every pattern of modalities, and draw from the prior."""
    for name in _BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]  # from now on, importing it raises

    import json
    from time import perf_counter

    import numpy as np

    began = perf_counter()
    from mmvae_fast.onnx import Runtime

    runtime = Runtime.load(bundle)
    with np.load(request) as file:
        inputs = {name: file[name] for name in runtime.modalities}
    first = {name: x[:1] for name, x in inputs.items()}
    runtime.reconstruct(first)
    ready = perf_counter() - began

    def milliseconds(call, repeats: int) -> float:
        """The median, after one call to warm up."""
        times = []
        for _ in range(repeats + 1):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        return 1e3 * float(np.median(times[1:]))

    rows = len(next(iter(inputs.values())))
    timings = {
        "ready_s": ready,
        "one_row_ms": milliseconds(lambda: runtime.reconstruct(first), 100),
        "all_rows_ms": milliseconds(lambda: runtime.reconstruct(inputs), 10),
        "rows": rows,
    }
    outputs = {f"sample/{name}": x for name, x in runtime.sample(SAMPLES, seed=seed).items()}
    for observed in patterns(list(inputs)):
        some = {name: inputs[name] for name in observed}
        key = "+".join(observed)
        outputs[f"{key}/mu"] = mu = runtime.encode(some).mu
        outputs.update({f"{key}/{name}": x for name, x in runtime.decode(mu, params=True).items()})
    np.savez(answer, **outputs)  # type: ignore[arg-type]
    print(json.dumps(timings))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], seed=int(sys.argv[4]))
