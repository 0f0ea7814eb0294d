import pytest

from deocc.testing import method_checks

pytest.importorskip("dlib", reason="needs dlib-bin, which is not installed")
pytest.importorskip("deocc_dlib", reason="needs the plugin itself, which is not installed")


@method_checks("dlib")
def test_contract(check):
    check()
