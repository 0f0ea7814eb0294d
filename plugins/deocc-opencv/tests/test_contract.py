from deocc.testing import method_checks


@method_checks("opencv-telea")
def test_telea(check):
    check()


@method_checks("opencv-ns")
def test_navier_stokes(check):
    check()
