from deocc.testing import method_checks


@method_checks("distill")
def test_contract(check) -> None:
    check()
