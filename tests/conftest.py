"""For all tests: property tests have no time limit of their own, since the machine is shared."""

from hypothesis import settings

pytest_plugins = ("evidence",)

settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")
