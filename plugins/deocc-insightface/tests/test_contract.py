import pytest

from deocc.testing import checks


@pytest.mark.filterwarnings("ignore:insightface's code")
def test_contract(make):
    for check in checks(f"insightface:pack,root={make('pack')}"):
        check()
