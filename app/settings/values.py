"""What a single value may be, for the variables whose type and bounds do not say it all.

Each check gives the value back, and raises ValueError, which pydantic reports with the variable.
"""

import re
from urllib.parse import urlsplit

from pydantic import AfterValidator

CREDENTIALS = "credentials do not belong in a URI"


def path_safe(signs: str, longest: int) -> AfterValidator:
    """Letters, digits and `signs`: safe as a part of a path and of a key."""
    allowed = re.compile(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(signs)}]{{0,{longest - 1}}}")

    def check(value: str) -> str:
        if not allowed.fullmatch(value):
            raise ValueError(
                f"allowed: up to {longest} letters, digits and {' '.join(signs)}, "
                "of which the first is a letter or a digit"
            )
        return value

    return AfterValidator(check)


def without_credentials(spec: str) -> str:
    """`spec`. Raises ValueError, without any of its text, for a URI that names a user.

    A password with a slash in it looks like a port that is no number.
    """
    if "://" not in spec:
        return spec
    try:
        parts = urlsplit(spec)
        plain = "@" not in parts.netloc and (parts.port is None or parts.port >= 0)
    except ValueError:
        plain = False
    if not plain:
        raise ValueError(
            f"{CREDENTIALS}, and a port is a number; give a web file a signed address, and set "
            "AWS_ACCESS_KEY_ID for a bucket"
        )
    return spec


def store_uri(uri: str) -> str:
    """A file:// or s3:// URI, without a slash at its end."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ValueError("not a URI") from error
    if "@" in parts.netloc:
        raise ValueError(f"{CREDENTIALS}; set AWS_ACCESS_KEY_ID instead")
    if parts.query or parts.fragment or ".." in parts.path.split("/"):
        raise ValueError("'?', '#' and '..' have no meaning here")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError("a file URI has three slashes: file:///absolute/folder")
    elif parts.scheme == "s3":
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
            raise ValueError(
                "an s3 URI names a bucket, of 3 to 63 small letters, digits, dots and dashes: "
                "s3://bucket/prefix"
            )
    else:
        raise ValueError("it starts with file:/// or s3://")
    return uri.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/"


def as_typed(value: object) -> str:
    """A value the way a user writes it: false, 25, 1e-08; nothing for what is unset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
