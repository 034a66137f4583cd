"""The noise of ``noise.py`` inside a graph, from standard operators: a seed goes in where noise went in.

For users of other runtimes, who would have to write Philox themselves. Stateless and safe to share, as everything here:
the same seed gives the same numbers as torch, CUDA and NumPy do. Products are int64, whose low 64 bits are exact, and
cast to uint64 for the shifts: ONNX Runtime multiplies uint64 only since 1.23, and 1.18 has to run this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmvae_fast import _lazy
from mmvae_fast.onnx.manifest import SEEDED_INPUTS, NoiseSpec

_GOLDEN, _LOW32 = 0x9E3779B97F4A7C15, 0xFFFFFFFF


def seed_graph(program: Any, noise: Sequence[NoiseSpec]) -> None:
    """Replace the inputs that hold noise by ``seed``, ``count`` (samples; rows, where nothing else tells how many) and
    ``noise_scale`` (0 for none), in place."""
    ir = _lazy.require("onnx_ir", extra="onnx")
    graph = program.graph
    build = _Builder(ir)
    kinds = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT}
    fed = [ir.Value(name=t.name, shape=ir.Shape([]), type=ir.TensorType(kinds[t.dtype])) for t in SEEDED_INPUTS]
    seed, count, scale = fed
    old = {value.name: value for value in graph.inputs}
    others = [value for name, value in old.items() if name not in {n.name for n in noise}]
    if others:
        batch = build.op(
            "Squeeze", build.op("Gather", build.op("Shape", others[0]), build.int64([0])), build.int64([0])
        )
        samples = count
    else:
        batch, samples = count, None
    for spec in noise:
        value = old[spec.name]
        own = build.op("Add", seed, build.int64(_wrapped(spec.branch * _GOLDEN)))
        made = build.noise(spec.kind, own, samples, batch, list(value.shape))
        if not spec.kind.startswith("uniform"):
            made = build.op("Mul", made, scale)
        value.replace_all_uses_with(made)
    first = graph[0]
    graph.insert_before(first, build.nodes)
    used = {id(value) for node in build.nodes for value in node.inputs}
    for value in build.constants:
        if id(value) in used:  # ONNX Runtime prints a warning of every other one
            graph.register_initializer(value)
    del graph.inputs[:]
    graph.inputs.extend([*others, *fed])


def _wrapped(value: int) -> int:
    """As an int64."""
    return (value + 2**63) % 2**64 - 2**63


class _Builder:
    """Nodes of a graph under construction."""

    def __init__(self, ir: Any) -> None:
        self.ir = ir
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: np.ndarray) -> Any:
        value = self.ir.Value(name=f"noise_constant_{len(self.constants)}", const_value=self.ir.tensor(array))
        value.shape, value.dtype = self.ir.Shape(array.shape), value.const_value.dtype
        self.constants.append(value)
        return value

    def int64(self, value: Any) -> Any:
        return self.constant(np.asarray(value, dtype=np.int64))

    def uint64(self, value: int) -> Any:
        return self.constant(np.asarray(value, dtype=np.uint64))

    def real(self, value: float) -> Any:
        return self.constant(np.asarray(value, dtype=np.float32))

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        node = self.ir.node(kind, inputs=list(inputs), attributes=attributes, name=f"noise_node_{len(self.nodes)}")
        node.outputs[0].name = f"noise_value_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: Any, kind: str) -> Any:
        return self.op("Cast", value, to=int(getattr(self.ir.DataType, kind)))

    def counters(self, count: Any, place: int) -> Any:
        """0 to count - 1, uint64, in one of three dimensions."""
        numbers = self.op("Range", self.int64(0), count, self.int64(1))
        others = [axis for axis in range(3) if axis != place]
        return self.cast(self.op("Unsqueeze", numbers, self.int64(others)), "UINT64")

    def noise(self, kind: str, seed: Any, samples: Any, rows: Any, shape: Sequence[Any]) -> Any:
        """What ``noise.make`` makes, of that shape: [(samples,) rows (, D)]."""
        one = self.int64(1)
        if kind == "uniform_of_samples":
            u = self.interleaved(self.uniforms(seed, one, rows, samples, 1), samples)  # [1, rows, samples]
            return self.op("Squeeze", self.op("Transpose", u, perm=[0, 2, 1]), self.int64([0]))
        if kind == "uniform":
            shared = len(shape) == 1
            lane = self.uniforms(seed, one if shared else samples, rows, one, 1)[0]
            return self.op("Squeeze", lane, self.int64([0, 2] if shared else [2]))
        dim, shared = self.int64(shape[-1]), len(shape) == 2
        u = self.uniforms(seed, one if shared else samples, rows, dim, 0)
        lanes = self.normals(u) if kind == "normal" else [self.laplace(lane) for lane in u]
        made = self.interleaved(lanes, dim)
        return self.op("Squeeze", made, self.int64([0])) if shared else made

    def uniforms(self, seed: Any, samples: Any, rows: Any, dim: Any, stream: int) -> list[Any]:
        """Four lanes in (0, 1), float32 [samples, rows, ceil(dim / 4)]."""
        key = self.cast(seed, "UINT64")
        low, half = self.uint64(_LOW32), self.uint64(32)
        blocks = self.op("Div", self.op("Add", dim, self.int64(3)), self.int64(4))
        k0, k1 = self.op("BitwiseAnd", key, low), self.op("BitShift", key, half, direction="RIGHT")
        c0, c1, c2 = self.counters(blocks, 2), self.counters(rows, 1), self.counters(samples, 0)
        c3 = self.uint64(stream)

        def product(c: Any, factor: int) -> Any:
            return self.cast(self.op("Mul", self.cast(c, "INT64"), self.int64(factor)), "UINT64")

        def mixed(p: Any, c: Any, k: Any) -> Any:
            high = self.op("BitShift", p, half, direction="RIGHT")
            return self.op("BitwiseXor", self.op("BitwiseXor", high, c), k)

        def advanced(k: Any, step: int) -> Any:
            return self.op(
                "BitwiseAnd", self.cast(self.op("Add", self.cast(k, "INT64"), self.int64(step)), "UINT64"), low
            )

        for _ in range(10):
            p0, p1 = product(c0, 0xD2511F53), product(c2, 0xCD9E8D57)
            c0, c1, c2, c3 = (
                mixed(p1, c1, k0), self.op("BitwiseAnd", p1, low), mixed(p0, c3, k1), self.op("BitwiseAnd", p0, low),
            )  # fmt: skip
            k0, k1 = advanced(k0, 0x9E3779B9), advanced(k1, 0xBB67AE85)
        return [self.uniform(word) for word in (c0, c1, c2, c3)]  # by now each has the shape of all three counters

    def uniform(self, word: Any) -> Any:
        bits = self.cast(self.op("BitShift", word, self.uint64(9), direction="RIGHT"), "FLOAT")
        return self.op("Mul", self.op("Add", bits, self.real(0.5)), self.real(2.0**-23))

    def normals(self, u: Sequence[Any]) -> list[Any]:
        """Box-Muller over the pairs of lanes."""
        lanes = []
        for u0, u1 in (u[:2], u[2:]):
            radius = self.op("Sqrt", self.op("Mul", self.op("Log", u0), self.real(-2.0)))
            angle = self.op("Mul", u1, self.real(2.0 * math.pi))
            lanes += [self.op("Mul", radius, self.op(turn, angle)) for turn in ("Cos", "Sin")]
        return lanes

    def laplace(self, u: Any) -> Any:
        tail = self.op("Log", self.op("Mul", self.op("Min", u, self.op("Sub", self.real(1.0), u)), self.real(2.0)))
        return self.op("Where", self.op("Less", u, self.real(0.5)), tail, self.op("Neg", tail))

    def interleaved(self, lanes: Sequence[Any], dim: Any) -> Any:
        """Lanes [K, rows, Q] -> [K, rows, dim]."""
        stacked = self.op("Concat", *(self.op("Unsqueeze", lane, self.int64([3])) for lane in lanes), axis=3)
        sizes = self.op("Shape", stacked)  # -1 for the last would have no answer for an empty batch
        last = self.op("Mul", *(self.op("Slice", sizes, *map(self.int64, ([i], [i + 1]))) for i in (2, 3)))
        leading = self.op("Slice", sizes, self.int64([0]), self.int64([2]))
        flat = self.op("Reshape", stacked, self.op("Concat", leading, last, axis=0), allowzero=1)
        end = self.op("Unsqueeze", dim, self.int64([0]))
        return self.op("Slice", flat, self.int64([0]), end, self.int64([2]))
