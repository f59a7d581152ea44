"""For scripts that import a module of `tfcompress` without TensorFlow."""

import pathlib

#: Source lines that make `tfcompress` a package whose own `__init__` does not run.
LIGHT_IMPORT = f"""
import sys, types
package = types.ModuleType("tfcompress")
package.__path__ = [{str(pathlib.Path(__file__).parents[2] / "tfcompress")!r}]
sys.modules["tfcompress"] = package
"""
