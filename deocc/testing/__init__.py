"""What plugins and builds test themselves with; shipped, so that a stranger's plugin can use it too."""

from deocc.testing.method_checks import Check, ContractError, checks, method_checks, run_checks

__all__ = ["Check", "ContractError", "checks", "method_checks", "run_checks"]
