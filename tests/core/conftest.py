"""What every test of the core starts from."""

from hypothesis import settings

settings.register_profile("core", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("core")
