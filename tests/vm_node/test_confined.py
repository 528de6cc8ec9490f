"""What a running server may do on a machine with control groups of version 2: answer, read its model, and no more."""

from tests.fixtures import confined

# The computer that the machine runs on, as QEMU has it; nothing listens on that port.
OUTSIDE = ("10.0.2.2", 9)


def test_packets_of_the_server_stay_on_loopback(node):
    beside = confined.reach(node, *OUTSIDE, inside=False)
    assert (beside["udp"], beside["loopback"]) == ("let through", "let through")
    assert beside["tcp"] != confined.SHUT["tcp"]
    assert confined.reach(node, *OUTSIDE, inside=True) == confined.SHUT


def test_the_server_does_not_write_its_model(node):
    assert "Read-only file system" in confined.written(node, "/srv/models/tiny-qwen35moe/probe")
    assert confined.written(node, "/var/lib/moehost/tiny/probe") == ""
