"""Which number formats which back end can serve on which machine; what cannot be is refused with the reason."""

from engines.schemes.check import check_scheme, combination_of
from engines.schemes.machine import MachineKind, cpu_kind, gpu_kind, here
from engines.schemes.rules import RULES, Combination, Rule, rule_against
from engines.schemes.scheme import Scheme, scheme_of, scheme_of_config

__all__ = [
    "RULES",
    "Combination",
    "MachineKind",
    "Rule",
    "Scheme",
    "check_scheme",
    "combination_of",
    "cpu_kind",
    "gpu_kind",
    "here",
    "rule_against",
    "scheme_of",
    "scheme_of_config",
]
