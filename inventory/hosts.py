"""The machines, and what each of them serves. Plain data: docs/settings.md lists every setting.

Without a machine of your own there is the sandbox: `make demo` starts it, with a tiny random model in it.
A machine of yours looks like this:

    gpu_nodes = [
        ("epyc.home.arpa", {
            "ssh_user": "root",
            "services": [{
                "name": "qwen",
                "model": {
                    "name": "Qwen3.5-397B-A17B-IQ4_NL",
                    "source": "hf://OWNER/REPO/PATH@COMMIT",
                },
                "context": 262144,
            }],
        }),
    ]

`moehost node add` writes machines to files in `nodes/`, where their services are yours to add.
"""

from moehost import nodes as _nodes

added = _nodes.hosts(__file__)

sandbox = [
    (
        "@podman/moehost-sandbox",
        {
            # It shares this computer's kernel, and must not touch its cards.
            "gpu": "off",
            # Without a card the distribution's engine will do, and is there in seconds.
            "engine": {"source": "package"},
            "services": [
                {
                    "name": "tiny",
                    "model": {"name": "tiny-qwen35moe", "source": "file:.sandbox/tiny-qwen35moe.gguf"},
                    "context": 8192,
                    "ubatch": 512,
                }
            ],
        },
    )
]
