"""The contract of everything that Keras saves: `get_config` gives back every argument."""

import dataclasses
import inspect

import keras
import pytest
from keras.saving import deserialize_keras_object, serialize_keras_object

import tfcompress as tfc
from tfcompress.model.batch_sizes import SampleConstant
from tfcompress.model.compressed import COMPRESSED, Compressed
from tfcompress.model.einsum_layer import SizedEinsumDense
from tfcompress.model.transforms import KeepMask
from tfcompress.quantization.fake_quant.biases import RoundBias
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.fake_quant.uniform_activations import UniformActivations
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.grids.last_value import LastValueWeights
from tfcompress.quantization.operators import (
    activations,
    arithmetic,
    attention,
    averages,
    clipping,
    comparisons,
    constant_operands,
    constants,
    cumulative,
    elementwise,
    embedding,
    fills,
    masked_scores,
    masking,
    moments,
    norm_steps,
    pooling,
    prelu,
    products,
    requantized,
    resizing,
    spectral,
    steps,
    upsampling,
)
from tfcompress.quantization.operators.batch_norm import QuantizedBatchNormalization
from tfcompress.quantization.operators.channel_affine import ChannelAffine
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.operators.trained_affine import TrainedAffine
from tfcompress.quantization.operators.trained_sum import AddWeight
from tfcompress.quantization.operators.training_only import TrainingOnly
from tfcompress.quantization.placement.keep_float import KeepFloat


@keras.saving.register_keras_serializable("serialization")
@dataclasses.dataclass(frozen=True)
class _OwnWeights(tfc.UniformWeights):
    option: float = 0.0


@keras.saving.register_keras_serializable("serialization")
@dataclasses.dataclass(frozen=True)
class _OwnActivations(tfc.ActivationQuantizer):
    option: int = 0


_WEIGHTS = tfc.WeightScheme(
    4, False, False, False, "truncate", True, tfc.Percentile(99.0), _OwnWeights(0.5)
)
_ACTIVATIONS = tfc.ActivationScheme(
    7, True, True, "stochastic", True, tfc.MovingAverage(0.5), _OwnActivations(3)
)
_NORM = serialize_keras_object(keras.layers.LayerNormalization(epsilon=0.25, name="norm"))
# Every class of the packages tested here → an instance with no argument at its default.
EXAMPLES = {
    KeepMask: lambda: KeepMask(name="mask"),
    FakeQuantizeWeights: lambda: FakeQuantizeWeights(_WEIGHTS, True, name="weights"),
    RoundBias: lambda: RoundBias(name="bias"),
    FakeQuantize: lambda: FakeQuantize(
        _ACTIVATIONS,
        fixed_range=(-1.0, 0.5),
        source="conv",
        gradients=tfc.GradientScheme(6),
        name="q",
    ),
    RescaledInput: lambda: RescaledInput(
        _ACTIVATIONS, factor=0.5, offset=-1.0, rescaling="scaled", source="image", name="q"
    ),
    QuantizedBatchNormalization: lambda: QuantizedBatchNormalization(
        momentum=0.5, epsilon=0.1, scale=False, name="bn", dtype="mixed_bfloat16"
    ),
    KeepFloat: lambda: KeepFloat(name="float", dtype="mixed_bfloat16"),
    ChannelAffine: lambda: ChannelAffine([1.0, 2.0], 3.0, name="affine"),
    UniformActivations: UniformActivations,
    tfc.UniformWeights: tfc.UniformWeights,
    tfc.GradientScheme: lambda: tfc.GradientScheme(4, "nearest"),
    tfc.QuantizedGradients: lambda: tfc.QuantizedGradients(
        keras.optimizers.SGD(0.5, momentum=0.5),
        4,
        "nearest",
        error_feedback=False,
        per_channel=True,
        method="qsgd",
        seed=3,
        name="sent",
    ),
    tfc.APoT: lambda: tfc.APoT(normalize=False),
    tfc.BinaryWeights: tfc.BinaryWeights,
    tfc.CodebookWeights: tfc.CodebookWeights,
    tfc.DoReFaActivations: lambda: tfc.DoReFaActivations(2.0),
    tfc.DoReFaWeights: lambda: tfc.DoReFaWeights(keeps_scale=False),
    tfc.LSQ: tfc.LSQ,
    tfc.LSQPlus: tfc.LSQPlus,
    tfc.LevelWeights: lambda: tfc.LevelWeights((-3, 0, 5)),
    tfc.PACT: lambda: tfc.PACT(1e-3),
    LastValueWeights: lambda: LastValueWeights("tensor"),
    tfc.PowerOfTwoWeights: lambda: tfc.PowerOfTwoWeights(logarithmic=True, fixed_scale=True),
    tfc.TernaryWeights: lambda: tfc.TernaryWeights(0.5),
    tfc.TrainedTernary: lambda: tfc.TrainedTernary(0.1),
    tfc.MinMax: tfc.MinMax,
    tfc.MovingAverage: lambda: tfc.MovingAverage(0.5),
    tfc.Percentile: lambda: tfc.Percentile(99.0),
    tfc.MeanStd: lambda: tfc.MeanStd(3.0),
    tfc.LeastSquares: lambda: tfc.LeastSquares(7),
    arithmetic.QuantizedAdd: lambda: arithmetic.QuantizedAdd(name="merge"),
    arithmetic.QuantizedSubtract: lambda: arithmetic.QuantizedSubtract(name="merge"),
    arithmetic.QuantizedMultiply: lambda: arithmetic.QuantizedMultiply(name="merge"),
    constants.AddConstant: lambda: constants.AddConstant(3.0, name="add"),
    constants.MultiplyConstant: lambda: constants.MultiplyConstant(0.25, name="times"),
    activations.NegativePart: lambda: activations.NegativePart(name="negative"),
    AddWeight: lambda: AddWeight((1, 4, 3), "l2", name="positions"),
    ToFloat: lambda: ToFloat(name="to_float"),
    TrainedAffine: lambda: TrainedAffine((3,), (1, 1, 3), "l2", offset_constraint="non_neg"),
    prelu.NegativeSlope: lambda: prelu.NegativeSlope(shared_axes=[1], name="slope"),
    averages.QuantizedAveragePooling1D: lambda: averages.QuantizedAveragePooling1D(
        3, 2, "same", name="mean"
    ),
    averages.QuantizedAveragePooling2D: lambda: averages.QuantizedAveragePooling2D(
        (3, 2), (2, 1), "same", name="mean"
    ),
    averages.QuantizedGlobalAveragePooling1D: lambda: averages.QuantizedGlobalAveragePooling1D(
        keepdims=True, name="mean"
    ),
    averages.QuantizedGlobalAveragePooling2D: lambda: averages.QuantizedGlobalAveragePooling2D(
        keepdims=True, name="mean"
    ),
    averages.QuantizedGlobalAveragePooling3D: lambda: averages.QuantizedGlobalAveragePooling3D(
        keepdims=True, name="mean"
    ),
    comparisons.Choose: lambda: comparisons.Choose(name="choose"),
    comparisons.Equals: lambda: comparisons.Equals(0.5, True, name="equals"),
    comparisons.FillIf: lambda: comparisons.FillIf(0.5, True, name="fill"),
    comparisons.MaskValues: lambda: comparisons.MaskValues(2.0, -1.0, name="values"),
    constant_operands.MultiplyArray: lambda: constant_operands.MultiplyArray(
        [0.5, 2.0], name="times"
    ),
    cumulative.CumulativeSum: lambda: cumulative.CumulativeSum(2, name="total"),
    SampleConstant: lambda: SampleConstant((1, 2, 3), "l2", "non_neg", name="token"),
    masked_scores.MaskScores: lambda: masked_scores.MaskScores(True, [[True, False]], name="mask"),
    TrainingOnly: lambda: TrainingOnly(keras.layers.GaussianNoise(0.1), name="noise"),
    masking.CountFactor: lambda: masking.CountFactor(name="factor"),
    masking.MaskSteps: lambda: masking.MaskSteps(name="steps"),
    masking.StepWeights: lambda: masking.StepWeights(name="weights"),
    norm_steps.SumOverAxes: lambda: norm_steps.SumOverAxes([1], False, original=_NORM, name="sum"),
    requantized.StandaloneReLU: lambda: requantized.StandaloneReLU(6.0, name="relu"),
    spectral.UnitSpectralNorm: lambda: spectral.UnitSpectralNorm(keras.constraints.NonNeg()),
    averages.ZeroPaddedAverage: lambda: averages.ZeroPaddedAverage((3, 2), (2, 1), name="mean"),
    averages.BorderCorrection: lambda: averages.BorderCorrection(
        (8, 6), (3, 3), (2, 1), name="border"
    ),
    attention.KeepWhere: lambda: attention.KeepWhere(
        activity_regularizer="l2", trainable=False, name="keep"
    ),
    attention.ScaledSoftmax: lambda: attention.ScaledSoftmax(0.5, True, name="softmax"),
    elementwise.ElementwiseFunction: lambda: elementwise.ElementwiseFunction(
        keras.layers.ELU(0.5), (None,), name="elu"
    ),
    embedding.CodedTable: lambda: embedding.CodedTable(name="table"),
    moments.Root: lambda: moments.Root(0.5, original=_NORM, name="root"),
    norm_steps.Centered: lambda: norm_steps.Centered(original=_NORM, name="centered"),
    norm_steps.InverseRoot: lambda: norm_steps.InverseRoot(
        0.5, 0.1, 3.0, original=_NORM, name="inverse"
    ),
    norm_steps.MeanOverAxes: lambda: norm_steps.MeanOverAxes(
        [1], False, original=_NORM, name="mean"
    ),
    norm_steps.MeanOverGroups: lambda: norm_steps.MeanOverGroups(3, original=_NORM, name="groups"),
    norm_steps.NormAffine: lambda: norm_steps.NormAffine(
        [2], "gamma", "beta", original=_NORM, name="affine"
    ),
    norm_steps.Normalized: lambda: norm_steps.Normalized(original=_NORM, name="normalized"),
    norm_steps.SumOfSquares: lambda: norm_steps.SumOfSquares(
        2, False, original=_NORM, name="squares"
    ),
    products.Product: lambda: products.Product("ab,bc->ac", margin=4.0, causal=True, name="p"),
    steps.Chunks: lambda: steps.Chunks(4, name="chunks"),
    steps.StackedSteps: lambda: steps.StackedSteps(name="stacked"),
    steps.StepsAsSamples: lambda: steps.StepsAsSamples(name="samples"),
    steps.SamplesAsSteps: lambda: steps.SamplesAsSteps(4, name="steps"),
    steps.StateDropout: lambda: steps.StateDropout(0.5, 3, name="dropout"),
    steps.Steps: lambda: steps.Steps(name="steps"),
    SizedEinsumDense: lambda: SizedEinsumDense(
        "abc,cd->abd", (None, 5), bias_axes="d", kernel_regularizer="l2", name="einsum"
    ),
    clipping.ClipTo: lambda: clipping.ClipTo(-0.5, 0.75, name="clip"),
    fills.PadWith: lambda: fills.PadWith([[1, 2], [0, 1]], 0.5, name="pad"),
    fills.FillWhere: lambda: fills.FillWhere([[True], [False]], [0.5, 0.25], name="fill"),
    pooling.Gather: lambda: pooling.Gather([2, 0], 1, name="gather"),
    resizing.QuantizedResizing: lambda: resizing.QuantizedResizing(
        5, 4, interpolation="nearest", antialias=True, name="resize"
    ),
    upsampling.QuantizedUpSampling2D: lambda: upsampling.QuantizedUpSampling2D(
        (2, 3), interpolation="bilinear", name="up"
    ),
}
PACKAGES = ("tfcompress.model", "tfcompress.quantization")
# Keras leaves them out of a configuration where they are not used.
_OPTIONAL = ("lora_rank", "lora_alpha", "gptq_unpacked_column_size", "quantization_config")


def registered():
    names = keras.saving.get_custom_objects()
    return {name: cls for name, cls in names.items() if name.startswith("tfcompress>")}


def test_every_registered_class_of_these_rooms_has_an_example():
    ours = {c for c in registered().values() if c.__module__.startswith(PACKAGES)}
    models = {c for c in ours if issubclass(c, keras.Model)}
    assert models == {tfc.QuantizedModel}
    generated = {c for c in ours if issubclass(c, Compressed)}
    # A user's classes are registered under packages of their own.
    keras_layers = {c for c in COMPRESSED if c.__module__.startswith("keras.")}
    assert generated == {COMPRESSED[cls] for cls in keras_layers}
    assert ours - models - generated == set(EXAMPLES)


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_every_argument_comes_back(cls):
    first = EXAMPLES[cls]()
    config = first.get_config()
    again = cls.from_config(config)
    assert again.get_config() == config
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name not in ("self", *_OPTIONAL) and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            assert name in config, name
    restored = deserialize_keras_object(serialize_keras_object(first))
    assert type(restored) is cls
    assert restored.get_config() == config


def test_the_chains_of_compressed_layers_come_back():
    for cls in [c for c in COMPRESSED if c.__module__.startswith("keras.")]:
        generated = COMPRESSED[cls]
        arguments = {
            "Embedding": {"input_dim": 3, "output_dim": 2},
            "EinsumDense": {"equation": "ab,bc->ac", "output_shape": 3},
            "DepthwiseConv1D": {"kernel_size": 3},
            "DepthwiseConv2D": {"kernel_size": 3},
        }.get(cls.__name__)
        units = {"units": 3} if cls.__module__.endswith(("dense", "lstm", "gru", "rnn")) else None
        arguments = arguments or units or {"filters": 2, "kernel_size": 3}
        chains = {"kernel": [FakeQuantizeWeights(_WEIGHTS), KeepMask()], "bias": [RoundBias()]}
        layer = generated(**arguments, transforms=chains)
        restored = deserialize_keras_object(serialize_keras_object(layer))
        assert type(restored) is generated
        assert restored.get_config() == layer.get_config()
        assert [type(t) for t in restored.transforms["kernel"]] == [KeepMask, FakeQuantizeWeights]
        assert restored.transforms["kernel"][1].scheme == _WEIGHTS
        assert generated.keras_class is cls


def test_registered_names_are_those_of_the_classes():
    for name, cls in registered().items():
        assert name == f"tfcompress>{cls.__name__}"
