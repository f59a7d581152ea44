"""Google's ai-edge-quantizer, on the float file: static and dynamic int8."""

from __future__ import annotations

import pathlib

from ai_edge_quantizer import quantizer, recipe

from benchmarks.peers_parts.job import Job, run_job

_PACKAGES = ["ai-edge-quantizer", "ai-edge-litert"]


def run(job: Job) -> None:
    """Quantizes the file."""
    is_static = job.method == "ai_edge_static"
    tool = quantizer.Quantizer(str(pathlib.Path(job.folder, "float.tflite")))
    tool.load_quantization_recipe(
        recipe.static_wi8_ai8() if is_static else recipe.dynamic_wi8_afp32()
    )
    ranges = None
    if is_static:
        name = _input_name(job)
        samples = [{name: image[None]} for image in job.calibration_data()]
        ranges = tool.calibrate({"serving_default": samples})
    result = tool.quantize(ranges)
    job.path.write_bytes(bytes(result.quantized_model))
    job.finish(None, _PACKAGES)


def _input_name(job: Job) -> str:
    """Of the signature's input."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(pathlib.Path(job.folder, "float.tflite")))
    return next(iter(interpreter.get_signature_runner("serving_default").get_input_details()))


if __name__ == "__main__":
    run_job(run)
