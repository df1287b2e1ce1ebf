"""Credentials in addresses: taken out of everything that is written, printed or compared.

An address may carry a user's password, a signature or a token. What stays tells one file from another: names that
select a version as they are, values of names that nobody knows as short hashes.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_MASK = "***"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]+:/{1,2}"
_END = r"\s\"'<>`"  # what ends an address within a text
# A user whose colon no port follows: what is between it and the last @ is a password, whatever it holds.
_WITH_PASSWORD = rf"[^/?#@:\[{_END}]*:(?!\d+(?:[/?#{_END}]|$))\S*@"
_URL = re.compile(rf"({_SCHEME})((?:{_WITH_PASSWORD})?[^{_END}]+)")
_QUERY_ITEM = re.compile(rf"([?&])([\w.\-%]+)=([^&{_END}]+)")
_USER = re.compile(rf"(?:{_WITH_PASSWORD}|[^/?#]*@)")
_TRAILING = re.compile(r"[:;,.)\]}]*$")  # of the sentence around an address, not of the address
_WITH_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs", "az", "adl")  # abfs://container@account/path
_PLAIN = {
    "versionid",
    "version",
    "revision",
    "ref",
    "raw",
    "download",
    "dl",
    "generation",
    "checksum",
    "sha256",
    "md5",
}
_SECRET = re.compile(
    r"x-(amz|goog|oss|obs|cos|ms)-.*|q-.*|.*(sig|token|secret|passw|pwd|credential|auth|jwt|session|api_?-?key"
    r"|access_?-?key|access_?-?id|accesskeyid).*|key|user|username|pass|expires?|exp|policy|key-pair-id|hash-algorithm"
    r"|s[vrpte]|ss|srt|spr|sip|si|sdd|sk(oid|tid|t|e|s|v)",  # the last two lines end with Azure's signed parameters
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Mask the credentials of all addresses in a text; a text without any comes back as it is.

    Users and passwords, and the values of a query whose names are known for secrets, become `***`. Values of other
    names become `~` and 8 hexadecimal digits of their hash. Names that select a version keep their values.
    """
    if "@" not in text and "=" not in text and "?" not in text and "#" not in text:
        return text
    text = _URL.sub(lambda match: match[1] + _masked(match[1].rstrip(":/").lower(), match[2]), text)
    # Some libraries name an address without its host.
    return _QUERY_ITEM.sub(
        lambda match: (
            f"{match[1]}{match[2]}={_MASK}{_TRAILING.findall(match[3])[0]}"
            if _is_secret(match[2])
            else match[0]
        ),
        text,
    )


def without_credentials(address: str) -> str:
    """What an address says of the file alone: a renewed signature or password does not change it."""
    match = _URL.fullmatch(address.strip())
    if match is None:
        return redact(address)
    masked = match[1] + _masked(match[1].rstrip(":/").lower(), match[2])
    head, mark, query = masked.replace(f"{_MASK}@", "", 1).partition("?")
    items = [item for item in query.split("&") if item and not item.endswith(f"={_MASK}") and item != _MASK]
    return head + (mark + "&".join(items) if items else "")


def redacted(value: Any) -> Any:
    """A JSON-able record with the credentials of all its texts masked, keys included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value


def _is_secret(name: str) -> bool:
    return name.lower() not in _PLAIN and _SECRET.fullmatch(name) is not None


def _masked(protocol: str, rest: str) -> str:
    """What follows an address's scheme, masked."""
    trailing = _TRAILING.findall(rest)[0]
    rest = rest[: len(rest) - len(trailing)]
    user = _USER.match(rest)
    if user is not None and (":" in user[0] or protocol not in _WITH_CONTAINERS):
        rest = f"{_MASK}@{rest[user.end() :]}"
    is_web = protocol in {"http", "https"}
    rest, _, fragment = rest.partition("#") if is_web else (rest, "", "")
    path, mark, query = rest.partition("?")
    if mark and (is_web or "=" in query):  # elsewhere a question mark may be a glob's
        path += "?" + "&".join(_masked_item(item) for item in query.split("&"))
    elif mark:
        path += mark + query
    return path + (f"#{_MASK}" if fragment else "") + trailing


def _masked_item(item: str) -> str:
    name, mark, value = item.partition("=")
    if not mark:
        return _MASK if name and name.lower() not in _PLAIN else name
    if name.lower() in _PLAIN or value == _MASK or re.fullmatch(r"~[0-9a-f]{8}", value):
        return item
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{name}={_MASK if _is_secret(name) else f'~{digest}'}"
