from deocc.testing import method_checks


@method_checks("mobilefacenet")
def test_contract(check):
    check()
