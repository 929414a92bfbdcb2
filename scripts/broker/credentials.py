"""Who may talk to a secured test broker, and by what: certificates, passwords and tokens, made at run time.

In: a folder. Out: files for the brokers and for three parties, by `openssl`. Nothing of it is worth keeping secret: it
lives as long as its broker, and the tokens are not even signed.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.broker.jars import KafkaMissingError

ADMIN, ALLOWED, STRANGER, BROKER = "admin", "gridsense", "stranger", "broker"
"""May do everything; may do what its access lists say; is known and has no rights; what brokers are to each other."""
LIVES_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Party:
    """Who connects, and by what it proves to be that.

    Attributes
    ----------
    name
        Of the user, and of who the certificate and the token are for.
    password
        For SCRAM-SHA-512.
    password_file
        Holds it.
    certificate_file, key_file
        For mTLS (PEM).
    token_file
        Holds a bearer token, for OAUTHBEARER.
    """

    name: str
    password: str
    password_file: Path
    certificate_file: Path
    key_file: Path
    token_file: Path


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that there are.

    Attributes
    ----------
    ca_file
        Certificate of the authority that signed all others (PEM).
    other_ca_file
        Certificate of another authority, that signed none.
    store_file
        Key and certificate of the brokers. It names 127.0.0.1, and not localhost.
    admin
        May do everything.
    allowed
        ``gridsense``: may read, write, make and look at topics, be in groups, and use transactions.
    stranger
        Is who it says, and may do nothing.
    encrypted_key_file, key_password, key_password_file
        The key of `allowed`, encrypted, the password that opens it, and a file that holds that.
    expired_token_file
        Holds a token that `allowed` had an hour ago.
    """

    ca_file: Path
    other_ca_file: Path
    store_file: Path
    admin: Party
    allowed: Party
    stranger: Party
    encrypted_key_file: Path
    key_password: str
    key_password_file: Path
    expired_token_file: Path


def make_credentials(folder: Path) -> Credentials:
    """Make all of them.

    Parameters
    ----------
    folder
        To write into. Passwords that an earlier call left there stay, since the brokers have stored them.

    Returns
    -------
    Credentials
        Their files and passwords.

    Raises
    ------
    KafkaMissingError
        If there is no openssl.
    """
    if not shutil.which("openssl"):
        raise KafkaMissingError("no openssl: a secured broker's certificates are made by it")
    folder.mkdir(parents=True, exist_ok=True)
    for authority in ("ca", "other-ca"):
        _openssl(
            folder, "req", "-x509", *_new_key(authority), "-out", f"{authority}.pem", "-days", "7",
            "-addext", "basicConstraints=critical,CA:TRUE",
        )  # fmt: skip
    admin, allowed, stranger, broker = (_party(folder, name) for name in (ADMIN, ALLOWED, STRANGER, BROKER))
    store = folder / "broker-store.pem"
    store.write_text(broker.key_file.read_text() + broker.certificate_file.read_text())
    key_password = _password(folder / "encrypted.password")
    _openssl(
        folder,
        "pkcs8",
        "-topk8",
        "-in",
        allowed.key_file.name,
        "-out",
        "encrypted.key",
        "-passout",
        f"pass:{key_password}",
    )
    expired = folder / "expired.token"
    expired.write_text(token(ALLOWED, -3600.0))
    return Credentials(
        ca_file=folder / "ca.pem",
        other_ca_file=folder / "other-ca.pem",
        store_file=store,
        admin=admin,
        allowed=allowed,
        stranger=stranger,
        encrypted_key_file=folder / "encrypted.key",
        key_password=key_password,
        key_password_file=folder / "encrypted.password",
        expired_token_file=expired,
    )


def token(name: str, expires_s: float) -> str:
    """Make a bearer token that says who one is and that nobody signed: Kafka takes it where it is told nothing else.

    Parameters
    ----------
    name
        Of whom.
    expires_s
        From now, when it ceases to be valid.

    Returns
    -------
    str
        A JWS with the algorithm `none`.

    References
    ----------
    RFC 7515, appendix A.5.
    """
    expires = time.time() + expires_s
    claims = {"sub": name, "iat": expires - LIVES_S, "exp": expires}
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    )
    return ".".join([*parts, ""])


def _party(folder: Path, name: str) -> Party:
    _openssl(
        folder, "req", "-x509", *_new_key(name), "-out", f"{name}.pem", "-days", "7", "-CA", "ca.pem",
        "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    token_file = folder / f"{name}.token"
    token_file.write_text(token(name, LIVES_S))
    password_file = folder / f"{name}.password"
    return Party(
        name, _password(password_file), password_file, folder / f"{name}.pem", folder / f"{name}.key", token_file
    )


def _password(kept: Path) -> str:
    if not kept.exists():
        kept.write_text(secrets.token_urlsafe(12))
    return kept.read_text()


def _new_key(name: str) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    return *curve, "-noenc", "-keyout", f"{name}.key", "-subj", f"/CN={name}"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
