"""The plugins' tests make the same tiny checkpoints as the core's."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("ftcore_test_checkpoints", Path(__file__).parents[1] / "tests" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_module = module_from_spec(_spec)
_spec.loader.exec_module(_module)
checkpoint, rows, story = _module.checkpoint, _module.rows, _module.story
