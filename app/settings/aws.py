"""What is wrong with AWS_* whatever a server would answer, told before the first request.

Also with REQUESTS_CA_BUNDLE, which botocore takes where AWS_CA_BUNDLE is not set.

boto3 reads these variables, and the job only looks at them. No line shows a value but the path of a
file: a slip of the hand puts a secret anywhere.
"""

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS")
# Of these the first that is there counts, also if it is empty.
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
_WORDS = (
    *_KEYS,
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    *_ENDPOINTS,
)
_TOKEN_FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
# Names and paths, which may hold spaces.
_TEXTS = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    *_TOKEN_FILES,
)
_REGION = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")  # as in a host name


def named_endpoint(environment: Mapping[str, str]) -> str:
    """What names the endpoint of S3 first: a URL, or a profile that may hold one. "" for none."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE")
    return next((f"{name}={value}" for name in names if (value := environment.get(name))), "")


def aws_problems(environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each problem, which begins with the name of the variable."""
    bundle = next((name for name in _BUNDLES if name in environment), "AWS_CA_BUNDLE")
    names = (*_WORDS, *_TEXTS, bundle)
    given = {name: value for name in names if (value := environment.get(name))}
    sound: dict[str, str] = {}
    for name, value in given.items():
        if flaw := _flaw(value, may_hold_spaces=name not in _WORDS):
            yield f"{name} (from the environment) cannot be used: {flaw}"
        else:
            sound[name] = value
    for name in ("AWS_PROFILE", bundle):
        if environment.get(name) == "":
            yield f"{name} is empty, which boto3 does not take for unset: unset it"
    has_keys = all(name in given for name in _KEYS)
    for name, other in (_KEYS, _KEYS[::-1]):
        if name in given and other not in given:
            yield f"{name} is set without {other}: set both, or neither"
    region = sound.get("AWS_DEFAULT_REGION")
    if region and not _REGION.fullmatch(region):
        yield "AWS_DEFAULT_REGION is no name of a region: letters, digits and dashes, as us-east-1"
    for name in _ENDPOINTS:
        if name in sound and (flaw := _endpoint_flaw(sound[name])):
            yield f"{name} cannot be used: {flaw}"
    for name, flaw in _file_flaws(sound, has_keys):
        yield f"{name} names a file that {flaw}"


def _flaw(value: str, may_hold_spaces: bool) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        return "it holds a line end or another control character; `printf %s` writes none"
    if value[0] in "'\"" or value[-1] in "'\"":
        return "the quotes are a part of the value here: leave them out"
    if value != value.strip():
        return "white space stands around it"
    if not may_hold_spaces and (not value.isascii() or " " in value):
        return "it holds a space, or a sign that is not ASCII"
    return ""


def _endpoint_flaw(url: str) -> str:
    if "@" in url:
        return "credentials do not belong in a URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        return "allowed: http://host:port or https://host:port"
    return ""


def _file_flaws(sound: Mapping[str, str], has_keys: bool) -> Iterator[tuple[str, str]]:
    checks: dict[str, Callable[[str], str]] = dict.fromkeys(_BUNDLES, _bundle_flaw)
    # boto3 does without a file of settings.
    checks["AWS_CONFIG_FILE"] = partial(_reading_flaw, may_be_missing=True)
    if not has_keys:  # they come first, and the other sources of credentials are not looked at
        checks["AWS_SHARED_CREDENTIALS_FILE"] = _reading_flaw
        token = partial(_reading_flaw, may_be_empty=False)
        checks |= dict.fromkeys(_TOKEN_FILES, token)
    for name, check in checks.items():
        if name in sound and (flaw := check(sound[name])):
            yield f"{name}={sound[name]!r}", flaw


def _reading_flaw(path: str, may_be_empty: bool = True, may_be_missing: bool = False) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(1)
    except FileNotFoundError:
        return "" if may_be_missing else "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except RuntimeError:
        return "cannot be found, since HOME is not set"
    return "" if content or may_be_empty else "is empty"


def _bundle_flaw(path: str) -> str:
    if flaw := _reading_flaw(path):
        return flaw
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return "holds no certificates in PEM form"
    return ""
