"""tfcompress: training-time compression for Keras 3 on TensorFlow."""

from tfcompress.version import __version__ as __version__
