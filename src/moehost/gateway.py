"""What a gateway lets through, and what its Caddyfile says of that."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from moehost.settings import Node, Service
from moehost.settings_access import Gateway, Router

# All that clients are for: completions, embeddings, ranking, tokens. Whatever shows the work of others, changes the
# server or asks other hosts is not here, and what is not here is not there.
READ = ["v1/models", "models", "health"]
ASKED = [
    "v1/chat/completions",
    "chat/completions",
    "v1/completions",
    "completions",
    "completion",
    "v1/responses",
    "v1/messages",
    "v1/messages/count_tokens",
    "v1/embeddings",
    "embeddings",
    "embedding",
    "v1/rerank",
    "rerank",
    "v1/reranking",
    "reranking",
    "tokenize",
    "detokenize",
    "apply-template",
    "infill",
]


class CertificateError(ValueError):
    """Why a certificate can't be used; one line."""


@dataclass(frozen=True)
class Route:
    """A service behind the gateway.

    + reads, asks: what requests look like that it gets, as regular expressions over method and address; the group is
      the path
    + gate: the same for the question whether it is warm
    """

    service: str
    upstream: str
    reads: str
    asks: str
    gate: str


def routes(services: Sequence[Service]) -> list[Route]:
    """
    The services by their names, `/NAME/v1/...`; the first one also answers without.

    An address is compared as it was sent, so that nothing encoded, doubled or climbing passes for something else.
    """
    found = []
    for index, service in enumerate(services):
        prefix = f"/(?:{service.name}/)?" if index == 0 else f"/{service.name}/"
        found.append(
            Route(
                service.name,
                f"{service.url_host}:{service.port}",
                f"^(?:GET|HEAD) {prefix}({'|'.join(READ)})(?:[?].*)?$",
                f"^POST {prefix}({'|'.join(ASKED)})(?:[?].*)?$",
                f"^GET {prefix}ready$",
            )
        )
    return found


def site(gateway: Gateway | Router) -> str:
    """How clients write the address of a gateway or router."""
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    return f"https://{host}" + (f":{gateway.port}" if gateway.port != 443 else "")


def addresses(node: Node) -> list[str]:
    """Whom the gateway exchanges packets with: this machine, the networks that may connect, services elsewhere."""
    hosts = [each.host for each in node.services]
    reached = [each for each in map(ipaddress.ip_address, hosts) if not (each.is_loopback or each.is_unspecified)]
    allowed = node.gateway.allow_from if node.gateway else []
    return ["localhost", *allowed, *map(str, dict.fromkeys(reached))]


def check_certificate(
    certificate: str, key: str, host: str, setting: str = "gateway.host", now: datetime | None = None
) -> None:
    """Raises CertificateError where a certificate (PEM, its chain after it) is not for this host, key and day.

    + host: name or address
    + setting: that says so
    """
    try:
        first = x509.load_pem_x509_certificates(certificate.encode())[0]
        private = load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"can't be read ({error}); write PEM, the key without a password") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise CertificateError("is not of the key in certificate_key_file")
    until = first.not_valid_after_utc
    if until < (now or datetime.now(UTC)):
        raise CertificateError(f"has not been valid since {until:%Y-%m-%d}; get another one")
    names = _names(first)
    wildcard = f"*.{host.partition('.')[2]}"
    if host not in names and wildcard not in names:
        raise CertificateError(f"is for {', '.join(names) or 'nobody'}, and {setting} is {host}")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return [*found.get_values_for_type(x509.DNSName), *addresses]
