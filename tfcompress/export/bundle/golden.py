"""Golden pairs: inputs and the outputs that they must give, for a test on the phone.

The format is what an Android test reads with `org.json` alone: every tensor is one flat list,
row by row, of the numbers that go into (or come out of) the runtime's buffer as they are.

    {"format": 2,
     "sha256": "<hash of the .tflite>",
     "tolerance_steps": 1,
     "steps": {"serving_default": {"logits": 1}},
     "samples": [{"signature": "serving_default",
                  "inputs": {"image": [-128, -127, …]},
                  "outputs": {"logits": [12, -35, …]}}, …],
     "checksum": "<SHA-256 of all other entries>"}

A test passes where `|output - golden| <= tolerance_steps * step` for every value. The step of an
integer output is one code. Floats differ a little from CPU to CPU; their step is 1e-4 of the
largest golden value.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.export.runtime.codes import TensorInfo, random_codes
from tfcompress.export.runtime.runner import Inputs, Runner
from tfcompress.files.sealed_json import sealed

FORMAT = 2
TOLERANCE_STEPS = 1

#: Flat lists grow large: about 4 characters a number, so some 200 KB of text.
MAX_VALUES = 50_000

_FLOAT_STEP = 1e-4


@dataclasses.dataclass(frozen=True)
class GoldenPair:
    """One sample: input and output arrays by name, each with a batch of 1, in native types."""

    signature: str | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def golden_pairs(
    runner: Runner, num_samples: int, data: Inputs | None = None, seed: int = 0
) -> list[GoldenPair]:
    """Runs a few samples and returns them with their outputs.

    Args:
        runner: The signature to run.
        num_samples: Most samples to take; fewer, but at least one, where they hold more than
            `MAX_VALUES` numbers.
        data: Inputs as `Runner.run_codes` takes them; the first samples are taken. By default
            they are synthetic: a ramp over the whole range of codes, then seeded random codes.
        seed: Seed of the synthetic samples.

    Raises:
        ValueError: If `data` is left out and an input holds plain integers, whose valid range
            (a vocabulary, say) the file does not tell.
    """
    per_sample = sum(
        int(np.prod(info.shape)) for info in (*runner.inputs.values(), *runner.outputs.values())
    )
    num_samples = max(1, min(num_samples, MAX_VALUES // per_sample))
    if data is None:
        rng = np.random.default_rng(seed)
        batch = {name: _synthetic(info, num_samples, rng) for name, info in runner.inputs.items()}
    else:
        batch = {
            name: runner.quantize(name, np.asarray(x)[:num_samples])
            for name, x in runner.by_name(data).items()
        }
    if not len(next(iter(batch.values()))):
        raise ValueError("Expected golden_data with at least one sample. Received: none")
    outputs = runner.run_codes(batch)
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected finite outputs to compare with. Received: NaN or infinity in {name!r}. "
                "Pass golden_data that the model can take"
            )
    return [
        GoldenPair(
            runner.signature,
            {name: x[i : i + 1] for name, x in batch.items()},
            {name: y[i : i + 1] for name, y in outputs.items()},
        )
        for i in range(len(next(iter(batch.values()))))
    ]


def to_json(pairs: Sequence[GoldenPair], sha256: str) -> str:
    """Returns golden pairs as JSON, one sample a line."""
    steps: dict[str, dict[str, float]] = {}
    for pair in pairs:
        own = steps.setdefault(_key(pair.signature), {})
        for name, y in pair.outputs.items():
            own[name] = max(own.get(name, 0), _step(y))
    content = sealed(
        {
            "format": FORMAT,
            "sha256": sha256,
            "tolerance_steps": TOLERANCE_STEPS,
            "steps": steps,
            "samples": [
                {
                    "signature": pair.signature,
                    "inputs": {name: _flat(x) for name, x in pair.inputs.items()},
                    "outputs": {name: _flat(y) for name, y in pair.outputs.items()},
                }
                for pair in pairs
            ],
        }
    )
    samples = [json.dumps(sample, separators=(",", ":")) for sample in content.pop("samples")]
    return json.dumps(content)[:-1] + ', "samples": [\n' + ",\n".join(samples) + "\n]}\n"


def worst_difference(
    runners: Mapping[str | None, Runner], content: Mapping, pairs: Sequence[GoldenPair]
) -> float:
    """Returns the largest `|output - golden| / step` over all samples and outputs."""
    worst = 0.0
    for pair in pairs:
        outputs = runners[pair.signature].run_codes(pair.inputs)
        for name, golden in pair.outputs.items():
            step = content["steps"][_key(pair.signature)][name]
            difference = np.abs(outputs[name].astype(np.float64) - golden.astype(np.float64))
            worst = max(worst, float(difference.max(initial=0.0)) / step)
    return worst


def from_json(content: Mapping, runners: Mapping[str | None, Runner]) -> list[GoldenPair]:
    """Returns the pairs in parsed JSON, with the shapes and types of the runners' tensors.

    Raises:
        ValueError: If they are no pairs for these signatures.
    """
    try:
        pairs = [
            GoldenPair(
                sample["signature"],
                _arrays(sample["inputs"], runners[sample["signature"]].inputs),
                _arrays(sample["outputs"], runners[sample["signature"]].outputs),
            )
            for sample in content["samples"]
        ]
        steps = [content["steps"][_key(pair.signature)][n] for pair in pairs for n in pair.outputs]
        if not all(isinstance(step, int | float) and step > 0 for step in steps):
            raise ValueError(f"steps of {steps}")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(
            "Expected golden pairs for the signatures of the file, with an array for each input "
            f"and output. Received: others ({type(error).__name__}: {error}). Write the bundle "
            "again"
        ) from error
    return pairs


def _arrays(lists: Mapping[str, list], infos: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    if set(lists) != set(infos):
        raise ValueError(f"the tensors {sorted(lists)} in place of {sorted(infos)}")
    return {
        name: np.asarray(values, infos[name].dtype).reshape((1, *infos[name].sample_shape))
        for name, values in lists.items()
    }


def _synthetic(info: TensorInfo, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    if not info.is_quantized and info.dtype.kind != "f":
        raise ValueError(
            f"Expected golden_data: the input {info.name!r} holds plain {info.dtype} numbers, and "
            "the file does not tell which are valid. Received: golden_data=None. Pass a few real "
            "samples, as golden_data or verify_data"
        )
    samples = random_codes(info, num_samples, rng)
    if info.is_quantized:
        limits = np.iinfo(info.dtype)
        ramp = np.rint(np.linspace(limits.min, limits.max, samples[0].size))
    else:
        ramp = np.linspace(-1.0, 1.0, samples[0].size)
    samples[0] = ramp.reshape(samples[0].shape).astype(info.dtype)
    return samples


def _step(y: np.ndarray) -> float:
    if y.dtype.kind != "f":
        return 1
    return float(np.abs(y).max(initial=0.0)) * _FLOAT_STEP or _FLOAT_STEP


def _flat(x: np.ndarray) -> list:
    return x.astype(np.int64 if x.dtype.kind == "b" else x.dtype).reshape(-1).tolist()


def _key(signature: str | None) -> str:
    return signature or ""
