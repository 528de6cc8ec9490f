"""What the tests of all folders have in common."""

from unittest.mock import patch

# pyinfra's command line patches the standard library for gevent as soon as it is imported. The cases of facts and
# operations import it but connect to nothing; tests that serve HTTP from threads need the library as it is.
with patch("gevent.monkey.patch_all"):
    import pyinfra_cli  # noqa: F401
