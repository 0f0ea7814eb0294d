from deocc.testing import method_checks


@method_checks("canet")
def test_contract(check):
    check()
