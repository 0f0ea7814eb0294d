from deocc.testing import checks


def test_contract(make):
    for check in checks(f"onnx:{make()}"):
        check()
