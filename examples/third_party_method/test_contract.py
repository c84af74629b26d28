"""ftcore-tinylora keeps what the contract of ftcore asks of a method."""

from ftcore.testing import method_checks

from ftcore_tinylora import TinyLoRA


@method_checks(TinyLoRA())
def test_contract(check):
    check()
