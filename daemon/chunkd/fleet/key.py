"""A key that hides hashes and digests: AES-256 over each block of 16 bytes.

A chunk's hash is one block. So equal hashes stay equal and others differ, the figures are the same, and who has the key
can go back.
"""

from __future__ import annotations

import hashlib
import os
import stat

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from chunkd.errors import UsageError

KEY_BYTES = 32


class KeyUnusable(UsageError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"key file {path}: {problem}; make one with `(umask 077; openssl rand -hex 32 > FILE)`")


class Key:
    """The key of a file that has 64 hexadecimal digits. Raises KeyUnusable, also for a file that others may read.

    `id` tells keys apart and says nothing of them.
    """

    def __init__(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                mode = os.fstat(descriptor).st_mode
                text = file.read(1024) if stat.S_ISREG(mode) else b""
        except OSError as error:
            raise KeyUnusable(path, error.strerror or str(error)) from None
        if mode & 0o077:
            raise KeyUnusable(path, "others can read it: its mode must be 0600 or 0400")
        try:
            key = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyUnusable(path, f"is not {2 * KEY_BYTES} hexadecimal digits")
        self.id = hashlib.blake2b(key, digest_size=8, person=b"chunkd key id").hexdigest()
        # Each block is a value by itself, and equal values must stay equal.
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305

    def map(self, blocks: bytes) -> bytes:
        """Whole blocks of 16 bytes, each hidden by itself."""
        return self._cipher.encryptor().update(blocks)
