"""Whether more of a metric is better: by its class, else by its name, else not at all."""

import keras
import pytest

from tfcompress.model.directions import direction, direction_of, direction_of_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", "min"),
        ("accuracy_loss", "min"),
        ("rmse", "min"),
        ("head_errors_2", "min"),
        ("KLDivergence", "min"),
        ("false_negatives_1", "min"),
        ("neg_mae", "max"),
        ("neg_log_likelihood", "min"),
        ("val_top5_acc", "max"),
        ("sparse_categorical_accuracy", "max"),
        ("meanIoU", "max"),
        ("true_negatives", "max"),
        ("f_score", "max"),
        # "acc", "dice" and "iou" are parts of these.
        ("vaccinated", None),
        ("indices", None),
        ("previous", None),
        ("quality", None),
        ("neg_quality", None),
        ("poisson", None),
    ],
)
def test_names(name, expected):
    assert direction_of_name(name) == expected
    if expected is None:
        with pytest.raises(ValueError, match="name tells whether more is better"):
            direction(name)
    else:
        assert direction(name) == expected


class YearsOff(keras.metrics.MeanAbsoluteError):
    pass


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (keras.metrics.KLDivergence(), "min"),
        (keras.metrics.LogCoshError(), "min"),
        (keras.metrics.Poisson(), "min"),
        (keras.metrics.FalsePositives(name="count"), "min"),
        (keras.metrics.FalseNegatives(), "min"),
        (keras.metrics.TruePositives(), "max"),
        (keras.metrics.MeanAbsoluteError(name="years_off"), "min"),
        (keras.metrics.MeanAbsoluteError(name="accuracy_of_years"), "min"),
        (YearsOff(name="years_off"), "min"),
        (keras.metrics.CosineSimilarity(), "max"),
        (keras.metrics.R2Score(name="fit"), "max"),
        (keras.losses.huber, "min"),
        (keras.losses.Poisson(), "min"),
        (keras.metrics.Mean(name="something"), None),
        (keras.metrics.MeanMetricWrapper(lambda y, p: p, name="my_error"), "min"),
    ],
)
def test_classes_come_before_names(metric, expected):
    assert direction_of(metric, getattr(metric, "name", "f")) == expected


def test_every_metric_class_of_keras_tells():
    made = {
        **dict.fromkeys(("PrecisionAtRecall", "RecallAtPrecision"), (0.5,)),
        **dict.fromkeys(("SensitivityAtSpecificity", "SpecificityAtSensitivity"), (0.5,)),
        **dict.fromkeys(("IoU", "OneHotIoU"), (2, [1])),
        **dict.fromkeys(("MeanIoU", "OneHotMeanIoU"), (2,)),
    }
    silent = ("Metric", "Mean", "Sum", "MeanMetricWrapper")
    classes = [c for c in vars(keras.metrics).values() if isinstance(c, type)]
    assert len(classes) > 40
    for cls in classes:
        if cls.__name__ not in silent:
            metric = cls(*made.get(cls.__name__, ()), name="m")
            assert direction_of(metric, "m") in ("min", "max"), cls
