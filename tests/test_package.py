"""What importing the package costs and brings in."""

import json
import re
import types

import tfcompress as tfc
from tests import fresh
from tests.pages import ROOT

_CODE = """
import json, sys
import tensorflow as tf
tf.keras
known, calls = set(sys.modules), 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
import tfcompress
sys.setprofile(None)
packages = {name.split(".")[0] for name in set(sys.modules) - known}
foreign = sorted(packages - set(sys.stdlib_module_names))
print(json.dumps({"calls": calls, "foreign": foreign}))
"""


def test_the_import_is_light():
    # In calls of Python functions, 40,000 here: a time would depend on the machine.
    result = json.loads(fresh.run(_CODE).splitlines()[-1])
    assert result["foreign"] == ["ai_edge_litert", "tfcompress"]
    assert result["calls"] < 100_000


#: Every public name. One that is added or removed is added or removed there too.
PUBLIC = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()

_USE = """
import json, sys
import tensorflow as tf
tf.keras
import tfcompress
late = sorted(name for name in sys.modules if name.startswith("tfcompress.export"))
missing = [name for name in sys.argv[1:] if not hasattr(tfcompress, name)]
foreign = [name for name in ("tf_keras", "tensorflow_model_optimization") if name in sys.modules]
# Raises once TensorFlow has run anything: neither imports nor names may do so.
tf.config.threading.set_inter_op_parallelism_threads(1)
print(json.dumps({"late": late, "missing": missing, "foreign": foreign}))
"""


def test_the_public_names_are_these():
    assert sorted(tfc.__all__) == sorted(PUBLIC)
    assert len(set(PUBLIC)) == len(PUBLIC)


def test_public_names_are_imported_when_used_and_run_nothing():
    result = json.loads(fresh.run(_USE, *PUBLIC).splitlines()[-1])
    assert result == {"late": [], "missing": [], "foreign": []}


def test_every_public_name_has_a_docstring():
    undocumented = [name for name in tfc.__all__ if not getattr(tfc, name).__doc__]
    assert not undocumented
    assert tfc.__version__


def test_the_page_of_public_names_is_complete():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.M)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    named = {name for name in named if not name.startswith("tfcompress.")}
    inner = {f"callbacks.{name}" for name in tfc.callbacks.__all__}
    inner |= {f"distribute.{name}" for name in tfc.distribute.__all__}
    assert named == {*PUBLIC, *inner} - {"callbacks", "distribute", "__version__"}


def test_the_namespace_holds_nothing_else():
    others = {name for name in vars(tfc) if not name.startswith("_")} - set(tfc.__all__)
    modules = {name for name in others if isinstance(getattr(tfc, name), types.ModuleType)}
    assert others == modules
    assert all(getattr(tfc, name).__name__ == f"tfcompress.{name}" for name in modules)


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto(?:function|class):: tfcompress\.(\w+)$", page, re.M))
    assert named == set(PUBLIC) - {"callbacks", "distribute", "__version__"}
