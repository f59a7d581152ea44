"""Models of tf_keras and of tensorflow-model-optimization (tfmot) as Keras 3 models."""
