"""What the tests of all folders have in common."""


def pytest_configure(config):
    # pyinfra's command line patches the standard library for gevent when it is imported; nothing here uses TLS.
    config.addinivalue_line("filterwarnings", "ignore:Monkey-patching ssl")
