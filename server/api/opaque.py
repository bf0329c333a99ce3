"""Text that a client carries for this server without reading it: a thought, or what a conversation was compacted to.

It is encoded and not encrypted: whoever may send it may read it, and on this machine it is theirs. HTTP process.
"""

from __future__ import annotations

import base64
import binascii
import zlib

from server.errors import InvalidRequest

_MARK = "configi1."
_LONGEST = 2**22


def enclosed(text: str) -> str:
    return _MARK + base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()


def encloses(content: str) -> bool:
    """Whether it claims to be of this server's making."""
    return content.startswith(_MARK)


def opened(content: str, where: str) -> str:
    """Raises InvalidRequest for what `enclosed` has not made."""
    try:
        if not encloses(content):
            raise ValueError
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(base64.urlsafe_b64decode(content[len(_MARK) :]), _LONGEST)
        if not unpacked.eof:
            raise ValueError
        return text.decode()
    except (ValueError, binascii.Error, zlib.error):
        message = f"{where}.encrypted_content was not made by this server."
        raise InvalidRequest(message, param=f"{where}.encrypted_content") from None
