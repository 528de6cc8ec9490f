"""What a client makes of a server's answers."""

import pytest

from moehost.client import Client, ClientError
from tests.fixtures.simulated_server import CONTEXT, KEY, SimulatedServer


def test_llama_server_is_recognised():
    with SimulatedServer() as server:
        client = Client(server.url)
        assert client.has_tokens
        assert client.context == CONTEXT
        assert client.about == {"api": "llama-server", "model": {"name": "simulated.gguf"}}


def test_a_server_with_openais_api_is_recognised():
    with SimulatedServer(openai=True) as server:
        client = Client(f"{server.url}/v1")
        assert not client.has_tokens
        assert client.about == {"api": "OpenAI", "model": {"name": "simulated"}}


def test_times_are_the_servers_own():
    with SimulatedServer() as server:
        answer = Client(server.url).complete(list(range(100)), 11, 10)
    assert answer.timings.clock == "server"
    assert (answer.timings.prompt_n, answer.timings.predicted_n) == (100, 11)
    assert answer.timings.prompt_s == pytest.approx(0.6)
    assert answer.timings.decode_s == pytest.approx(10 * 0.05)
    assert len(answer.arrived_s) == 11
    assert list(answer.arrived_s) == sorted(answer.arrived_s)


def test_a_prompt_is_neither_cached_nor_ended_early():
    with SimulatedServer() as server:
        Client(server.url).complete([1, 2, 3], 4, 10)
    (body,) = server.asked
    assert (body["cache_prompt"], body["ignore_eos"], body["n_predict"], body["stop"]) == (False, True, 4, [])


def test_without_the_servers_times_our_own_clock_counts():
    with SimulatedServer(openai=True) as server:
        answer = Client(server.url).complete("word " * 80, 9, 10)
    assert answer.timings.clock == "client"
    assert (answer.timings.prompt_n, answer.timings.predicted_n) == (100, 9)
    assert answer.timings.prompt_s == answer.arrived_s[0]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("fails", "HTTP status 500: the model is on fire"),
        ("breaks_off", "out of memory"),
        ("hangs", "nothing for 1 s"),
    ],
)
def test_a_fault_is_one_line(fault, sentence):
    with SimulatedServer() as server:
        client = Client(server.url)
        getattr(server, fault).add(0)
        with pytest.raises(ClientError) as error:
            client.complete([1, 2, 3], 4, 1)
    assert str(error.value) == sentence


def test_a_wrong_key_says_what_to_give():
    with SimulatedServer(key=KEY) as server:
        assert Client(server.url, KEY).context == CONTEXT
        with pytest.raises(ClientError, match=r"refuses the key .*--api-key-file"):
            Client(server.url, "another")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://there", "http://"])
def test_an_address_that_is_none(url):
    with pytest.raises(ClientError, match=r"is no address; write e\.g\. http://127\.0\.0\.1:8080"):
        Client(url)


def test_nobody_there():
    with pytest.raises(ClientError, match=r"http://127\.0\.0\.1:9 does not answer"):
        Client("http://127.0.0.1:9")
