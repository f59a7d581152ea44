"""tfcompress: training-time compression for Keras 3 on TensorFlow.

What you trained is what you ship.

What a saved model needs to load is imported at once; other modules are imported when one of their
names is first used, so that the import costs little beside TensorFlow's own.
"""

import importlib as _importlib
import typing as _typing

from tfcompress import callbacks, distribute
from tfcompress.distillation import (
    AttentionTransfer,
    DistillationLoss,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    TeacherCache,
    TeacherEnsemble,
    TFLiteTeacher,
)
from tfcompress.model.activations import replace_activations
from tfcompress.model.inventory import inventory
from tfcompress.model.kernels import KernelSpec
from tfcompress.model.macs import count_macs
from tfcompress.model.registration import register_kernel
from tfcompress.model.shuffled_batches import ShuffledBatches
from tfcompress.model.strip import strip
from tfcompress.model.subclassed import as_functional
from tfcompress.model.transforms import WeightTransform
from tfcompress.pruning import (
    SET,
    Block,
    Channels,
    ConstantSparsity,
    CosineSchedule,
    Criterion,
    DynamicNetworkSurgery,
    MetricGuided,
    NOfM,
    Pattern,
    PolynomialDecay,
    Pruner,
    PruningReport,
    PruningSchedule,
    RigL,
    ScoringOptions,
    Unstructured,
    register_criterion,
)
from tfcompress.quantization import (
    LSQ,
    PACT,
    ActivationQuantizer,
    ActivationScheme,
    APoT,
    BinaryWeights,
    CodebookWeights,
    DoReFaActivations,
    DoReFaWeights,
    GradientScheme,
    KernelGrid,
    LeastSquares,
    LevelWeights,
    LSQPlus,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    Plan,
    PowerOfTwoWeights,
    QuantizationConfig,
    QuantizedGradients,
    QuantizedModel,
    Scheme,
    TernaryWeights,
    TrainedTernary,
    UniformWeights,
    VariableSpec,
    WeightQuantizer,
    WeightScheme,
    dampening_loss,
    plan,
    quantize,
    reestimate_batch_norm,
    register_operator,
)
from tfcompress.sharing import (
    ClusteringReport,
    PackReport,
    SharedModels,
    cluster,
    clustering_report,
    pack,
    refresh_assignments,
    share_weights,
    unpack,
)
from tfcompress.version import __version__

if _typing.TYPE_CHECKING:
    from tfcompress.analysis.comparison.compare import compare
    from tfcompress.analysis.comparison.debug import QuantizationDebug, debug_quantization
    from tfcompress.analysis.comparison.explain import DifferenceReport, explain_difference
    from tfcompress.analysis.comparison.report import CompareReport
    from tfcompress.analysis.costs.budgets import (
        Bytes,
        Instructions,
        Latency,
        Macs,
        Parameters,
        PeakMemory,
    )
    from tfcompress.analysis.costs.instructions import count_instructions
    from tfcompress.analysis.measuring.evaluate import evaluate_file
    from tfcompress.analysis.recipes.checker import RecipeError
    from tfcompress.analysis.recipes.recipe import Recipe
    from tfcompress.analysis.search.control import AccuracyControl, accuracy_control
    from tfcompress.analysis.search.result import SearchResult
    from tfcompress.analysis.search.search import search
    from tfcompress.analysis.sensitivity.sensitivity import sensitivity
    from tfcompress.analysis.sensitivity.table import Sensitivity
    from tfcompress.compat.tfmot.migrate import from_tfmot
    from tfcompress.export import (
        ConversionError,
        ExportReport,
        export_tflite,
        shared_converter,
    )
    from tfcompress.export.flatbuffer.inspect import inspect_tflite
    from tfcompress.export.lint import LintReport, lint
    from tfcompress.export.runtime.latency import compare_latency
    from tfcompress.export.runtime.runner import Runner
    from tfcompress.factorization import FactorizationPlan, factorize, plan_factorization
    from tfcompress.model.comparison import Comparison, compare_models
    from tfcompress.pruning.structure import (
        ChannelPruner,
        Dependencies,
        Role,
        ShrinkReport,
        WidthOptions,
        register_rule,
        shrink,
    )

#: Module → the public names that are imported from it on first use.
_LAZY_NAMES = {
    "tfcompress.analysis.comparison.compare": ("compare",),
    "tfcompress.analysis.comparison.debug": ("QuantizationDebug", "debug_quantization"),
    "tfcompress.analysis.comparison.explain": ("DifferenceReport", "explain_difference"),
    "tfcompress.analysis.comparison.report": ("CompareReport",),
    "tfcompress.analysis.costs.budgets": (
        "Bytes",
        "Instructions",
        "Latency",
        "Macs",
        "Parameters",
        "PeakMemory",
    ),
    "tfcompress.analysis.search.control": ("AccuracyControl", "accuracy_control"),
    "tfcompress.analysis.measuring.evaluate": ("evaluate_file",),
    "tfcompress.analysis.costs.instructions": ("count_instructions",),
    "tfcompress.analysis.recipes.recipe": ("Recipe",),
    "tfcompress.analysis.search.result": ("SearchResult",),
    "tfcompress.analysis.recipes.checker": ("RecipeError",),
    "tfcompress.analysis.search.search": ("search",),
    "tfcompress.analysis.sensitivity.sensitivity": ("sensitivity",),
    "tfcompress.analysis.sensitivity.table": ("Sensitivity",),
    "tfcompress.compat.tfmot.migrate": ("from_tfmot",),
    "tfcompress.export": ("ConversionError", "ExportReport", "export_tflite", "shared_converter"),
    "tfcompress.export.flatbuffer.inspect": ("inspect_tflite",),
    "tfcompress.export.lint": ("LintReport", "lint"),
    "tfcompress.export.runtime.latency": ("compare_latency",),
    "tfcompress.export.runtime.runner": ("Runner",),
    "tfcompress.factorization": ("FactorizationPlan", "factorize", "plan_factorization"),
    "tfcompress.model.comparison": ("Comparison", "compare_models"),
    "tfcompress.pruning.structure": (
        "ChannelPruner",
        "Dependencies",
        "Role",
        "ShrinkReport",
        "WidthOptions",
        "register_rule",
        "shrink",
    ),
}
_MODULE_OF = {name: module for module, names in _LAZY_NAMES.items() for name in names}

__all__ = [
    "LSQ",
    "PACT",
    "SET",
    "APoT",
    "AccuracyControl",
    "ActivationQuantizer",
    "ActivationScheme",
    "AttentionTransfer",
    "BinaryWeights",
    "Block",
    "Bytes",
    "ChannelPruner",
    "Channels",
    "ClusteringReport",
    "CodebookWeights",
    "CompareReport",
    "Comparison",
    "ConstantSparsity",
    "ConversionError",
    "CosineSchedule",
    "Criterion",
    "Dependencies",
    "DifferenceReport",
    "DistillationLoss",
    "Distiller",
    "DoReFaActivations",
    "DoReFaWeights",
    "DynamicNetworkSurgery",
    "ExportReport",
    "FactorizationPlan",
    "FeatureDistillation",
    "GradientScheme",
    "Instructions",
    "KernelGrid",
    "KernelSpec",
    "LSQPlus",
    "Latency",
    "LeastSquares",
    "LevelWeights",
    "LintReport",
    "LogitsDistillation",
    "Macs",
    "MeanStd",
    "MetricGuided",
    "MinMax",
    "MovingAverage",
    "NOfM",
    "Observer",
    "PackReport",
    "Parameters",
    "Pattern",
    "PeakMemory",
    "Percentile",
    "Plan",
    "PolynomialDecay",
    "PowerOfTwoWeights",
    "Pruner",
    "PruningReport",
    "PruningSchedule",
    "QuantizationConfig",
    "QuantizationDebug",
    "QuantizedGradients",
    "QuantizedModel",
    "Recipe",
    "RecipeError",
    "RelationalAngle",
    "RelationalDistance",
    "RigL",
    "Role",
    "Runner",
    "Scheme",
    "ScoringOptions",
    "SearchResult",
    "Sensitivity",
    "SharedModels",
    "ShrinkReport",
    "ShuffledBatches",
    "SimilarityPreserving",
    "TFLiteTeacher",
    "TeacherCache",
    "TeacherEnsemble",
    "TernaryWeights",
    "TrainedTernary",
    "UniformWeights",
    "Unstructured",
    "VariableSpec",
    "WeightQuantizer",
    "WeightScheme",
    "WeightTransform",
    "WidthOptions",
    "__version__",
    "accuracy_control",
    "as_functional",
    "callbacks",
    "cluster",
    "clustering_report",
    "compare",
    "compare_latency",
    "compare_models",
    "count_instructions",
    "count_macs",
    "dampening_loss",
    "debug_quantization",
    "distribute",
    "evaluate_file",
    "explain_difference",
    "export_tflite",
    "factorize",
    "from_tfmot",
    "inspect_tflite",
    "inventory",
    "lint",
    "pack",
    "plan",
    "plan_factorization",
    "quantize",
    "reestimate_batch_norm",
    "refresh_assignments",
    "register_criterion",
    "register_kernel",
    "register_operator",
    "register_rule",
    "replace_activations",
    "search",
    "sensitivity",
    "share_weights",
    "shared_converter",
    "shrink",
    "strip",
    "unpack",
]


def __getattr__(name: str) -> _typing.Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
