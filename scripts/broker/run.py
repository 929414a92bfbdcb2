"""Runs a real Kafka broker on loopback, for trying things out, until Ctrl+C; prints what to write into gridsense.toml.

    python scripts/broker/run.py                      # one broker, anybody may do everything
    python scripts/broker/run.py --brokers 3          # three, that survive the loss of one
    python scripts/broker/run.py --secure             # TLS; passwords, tokens or certificates; access lists
    python scripts/broker/run.py --folder kafka       # its data stay there, and are there the next time

It needs Java 17 or later, and the first time Maven and a network (43 MB). The brokers end with this program, however it
ends. Each one's log is FOLDER/broker-N/kafka.log, its settings are server.properties beside it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from scripts.broker.cluster import BrokerError, Cluster
    from scripts.broker.jars import KafkaMissingError
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

RUNS = "# It runs; Ctrl+C stops it."


def settings(cluster: Cluster) -> str:
    """Write down what gridsense.toml needs to reach a cluster that runs.

    Parameters
    ----------
    cluster
        It.

    Returns
    -------
    str
        TOML.
    """
    kafka = [f"replication = {cluster.brokers}"]
    if cluster.security == "scram":
        user, ca = cluster.credentials.allowed, cluster.credentials.ca_file
        kafka += [
            'protocol = "SASL_SSL"',
            f'username = "{user.name}"',
            f'password_file = "{user.password_file}"',
            f'ca_file = "{ca}"',
            "# or by a token: the same, but",
            '#   mechanism = "OAUTHBEARER"',
            f'#   token_file = "{user.token_file}"',
            f'# or by a certificate: log.url = "kafka://{cluster.tls_servers}", with ca_file and',
            '#   protocol = "SSL"',
            f'#   certificate_file = "{user.certificate_file}"',
            f'#   key_file = "{user.key_file}"',
            "# Beside these lie the files of two other users: admin may do everything, stranger nothing.",
        ]
    return "\n".join(["[log]", f'url = "kafka://{cluster.servers}"', "", "[kafka]", *kafka])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="how many (default: 1)")
    parser.add_argument("--secure", action="store_true", help="ask who one is, and encrypt")
    parser.add_argument("--folder", type=Path, default=None, help="for its data; kept (default: one that goes with it)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run until told to stop."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-kafka-")))
        try:
            cluster = Cluster(folder, args.brokers, security="scram" if args.secure else "plain", optimized=True)
            stack.enter_context(cluster)
            print(f"{settings(cluster)}\n\n{RUNS}", flush=True)
            while True:
                time.sleep(0.5)
                cluster.check()
        except KeyboardInterrupt:
            return 0
        except (BrokerError, KafkaMissingError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
