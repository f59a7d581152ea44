"""Quantization-aware training: schemes, observers, quantizers, and what LiteRT does at each op."""

from tfcompress.quantization.callbacks import QuantizationSchedule, reestimate_batch_norm
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.uniform_weights import UniformWeights
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.gradients.backward import GradientScheme
from tfcompress.quantization.gradients.optimizer import QuantizedGradients
from tfcompress.quantization.grids.binary import BinaryWeights
from tfcompress.quantization.grids.codebook import CodebookWeights
from tfcompress.quantization.grids.dorefa import DoReFaActivations, DoReFaWeights
from tfcompress.quantization.grids.last_value import LastValueWeights
from tfcompress.quantization.grids.learned_step import LSQ, LSQPlus
from tfcompress.quantization.grids.levels import APoT, LevelWeights, PowerOfTwoWeights
from tfcompress.quantization.grids.pact import PACT
from tfcompress.quantization.grids.ternary import TernaryWeights, TrainedTernary
from tfcompress.quantization.observers import (
    LeastSquares,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from tfcompress.quantization.operators.custom import register_operator
from tfcompress.quantization.oscillation.dampening import dampening_loss
from tfcompress.quantization.placement.plan import Plan, PlanEntry
from tfcompress.quantization.quantize import plan, quantize
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.quantization.schemes import ActivationScheme, Scheme, WeightScheme

__all__ = [
    "LSQ",
    "PACT",
    "APoT",
    "ActivationQuantizer",
    "ActivationScheme",
    "BinaryWeights",
    "CodebookWeights",
    "DoReFaActivations",
    "DoReFaWeights",
    "FakeQuantize",
    "GradientScheme",
    "KernelGrid",
    "LSQPlus",
    "LastValueWeights",
    "LeastSquares",
    "LevelWeights",
    "MeanStd",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Plan",
    "PlanEntry",
    "PowerOfTwoWeights",
    "QuantizationConfig",
    "QuantizationSchedule",
    "QuantizedGradients",
    "QuantizedModel",
    "Scheme",
    "TernaryWeights",
    "TrainedTernary",
    "UniformWeights",
    "VariableSpec",
    "WeightQuantizer",
    "WeightScheme",
    "dampening_loss",
    "plan",
    "quantize",
    "reestimate_batch_norm",
    "register_operator",
]
