"""One bucket through obstore, which is imported here alone. Objects are known by their keys, as the bucket has them.

No request takes more than 30 s. What fails for a moment is tried again, a few times. An error says in our own words
what is wrong: a library's text may have a signed URL in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from errno import EACCES, EFBIG, EINVAL, EIO, ENOENT, ETIMEDOUT
from typing import TYPE_CHECKING, Any, NamedTuple

from chunkd.errors import ChunkdError
from chunkd.model import FileMark

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

REQUEST_S = 30
# A request is tried so often, after pauses that double from the first to the longest.
TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
# So many requests about single objects are under way at once.
AT_ONCE = 16
PAGE_KEYS = 1000
# What a request that breaks off may lose, and is handed on at once. Each time, more would be new memory of the system.
PIECE_BYTES = 64 << 10
_ARCHIVED = ("InvalidObjectState", "BlobArchived")
# What lasts, whatever is done: a wrong key, an object that is not there, a request that the bucket does not understand.
_LASTING = re.compile(r"4(?!08|29)[0-9]{2}")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
_ENDPOINT = re.compile(r"(?i)https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(?:/[a-z0-9._~/-]*)?")
# These go into a request as they are, and the library panics at a character that has no place there.
_WORDS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
)


class ExtraMissing(ChunkdError):
    def __init__(self, url: str) -> None:
        super().__init__(f"cache {url}: object storage needs obstore; install it: pip install 'chunkd[s3]'")


class EnvironmentUnusable(ChunkdError):
    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"cache {url}: what the environment says of it can't be used: {problem}")


class Archived(OSError):
    """The object is in an archive, and can't be read before it is restored."""


class Replaced(OSError):
    """The object is not the one that was listed."""


class KeyRefused(OSError):
    """The bucket has listed a key that the library does not take, such as `a//b`."""


class Object(NamedTuple):
    """`tag` is the object's ETag, and where there is none, the time of its last change. `changed_ns` is that time."""

    key: str
    stored_bytes: int
    tag: str
    changed_ns: int

    def mark(self, device: int) -> FileMark:
        """An ETag names the bytes, so no time is needed, and no clock but our own: each ctime is the same."""
        inode = int.from_bytes(hashlib.blake2b(self.tag.encode(), digest_size=8).digest(), "big") >> 1
        return FileMark(device, inode, self.stored_bytes, 1)


class Patience:
    """How often one thing is tried, and how long to wait in between. `progress` begins the count anew."""

    def __init__(self) -> None:
        self._tries = 0

    def progress(self) -> None:
        self._tries = 0

    def wait_s(self, error: Exception) -> float:
        """The pause before the next try. Raises OSError if there is to be none."""
        self._tries += 1
        lasting, problem = _problem_of(error)
        if lasting or self._tries >= TRIES:
            raise problem from None
        return min(FIRST_PAUSE_S * 2.0**self._tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


class Bucket:
    """The bucket of a URL such as `s3://bucket/prefix`. The methods raise OSError, FileNotFoundError for an object that
    is not there. `device` is a number that another bucket, or one elsewhere, does not have.

    Raises ExtraMissing, and EnvironmentUnusable.
    """

    def __init__(self, url: str) -> None:
        self._scheme, _, rest = url.partition("://")
        self._name = rest.partition("/")[0]
        self.url = f"{self._scheme}://{self._name}"
        where = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if problem := _environments_problem():
            raise EnvironmentUnusable(self.url, problem)
        number = hashlib.blake2b(f"{self.url} {where}".encode(), digest_size=8).digest()
        self.device = int.from_bytes(number, "big") >> 2 | 1 << 61
        self._store = self._open(allow_http=where.startswith("http://"))

    def _open(self, *, allow_http: bool) -> ObjectStore:
        # More threads than that hand work to and fro: with two a small object takes 1.4 times the processor time.
        os.environ.setdefault("TOKIO_WORKER_THREADS", str(1 + (os.cpu_count() or 1) // 8))
        try:
            from obstore.store import AzureStore, GCSStore, S3Store
        except ImportError:
            raise ExtraMissing(self.url) from None
        client: ClientConfig = {
            "timeout": timedelta(seconds=REQUEST_S),
            "connect_timeout": timedelta(seconds=5),
            "allow_http": allow_http,
        }
        # One place decides what is tried again: `Patience`.
        once: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_S)}
        made: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        try:
            store: ObjectStore = made[self._scheme](self._name, client_options=client, retry_config=once)
        except Exception as error:
            raise EnvironmentUnusable(self.url, _problem_of(error)[1].strerror or "") from None
        return store

    def keys(self, prefix: str) -> Iterator[list[Object]]:
        """Every object whose key begins with the prefix, a folder's with its slash, in pages and in their order."""
        import obstore

        last, patience = "", Patience()
        while True:
            try:
                for page in obstore.list(self._store, prefix or None, offset=last or None, chunk_size=PAGE_KEYS):
                    found = [_object(one) for one in page]
                    if found:
                        last = found[-1].key
                    patience.progress()
                    yield found
                return
            except Exception as error:
                _wait_to_list(patience, error)

    def has_any(self, prefix: str) -> bool:
        """Whether there is an object below the prefix. A key that can't be listed counts, if it is not right below."""
        try:
            return bool(next(self.keys(prefix), None))
        except KeyRefused:
            return any(self.folder(prefix))

    def folder(self, prefix: str) -> tuple[list[Object], list[str]]:
        """The objects right in a folder, and the prefixes of the folders right in it, without a slash at their end.

        A folder without a name, which `/a` is in, is left out: here it would be the whole bucket once more.
        """
        import obstore

        patience = Patience()
        while True:
            try:
                found = obstore.list_with_delimiter(self._store, prefix or None)
                return [_object(one) for one in found["objects"]], [one for one in found["common_prefixes"] if one]
            except Exception as error:
                _wait_to_list(patience, error)

    def looks(self, keys: Sequence[str]) -> list[Object | OSError]:
        """What each of these objects is, or why nobody knows."""
        if len(keys) == 1:
            return [self._look(keys[0])]
        found, left = dict[str, Object | OSError](), list(keys)

        def look() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    key = left.pop()
                    found[key] = self._look(key)

        # Python waits at its end for the threads of an executor, as long as the bucket does not answer.
        threads = [threading.Thread(target=look, name="look", daemon=True) for _ in keys[:AT_ONCE]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[key] for key in keys]

    def _look(self, key: str) -> Object | OSError:
        import obstore

        patience = Patience()
        while True:
            try:
                return _object(obstore.head(self._store, key))
            except Exception as error:
                try:
                    time.sleep(patience.wait_s(error))
                except OSError as problem:
                    return problem

    def read(self, key: str, most_bytes: int) -> tuple[bytes, Object]:
        """A small object as a whole. Raises OSError with EFBIG when it is larger."""
        import obstore

        patience = Patience()
        while True:
            try:
                got = obstore.get(self._store, key)
                content = bytes(got.bytes()) if got.meta["size"] <= most_bytes else None
            except Exception as error:
                time.sleep(patience.wait_s(error))
                continue
            if content is None:
                raise OSError(EFBIG, f"larger than {most_bytes} bytes", key)
            return content, _object(got.meta)

    def pieces(self, of: Object, begin: int, end: int) -> Iterator[Any]:
        """The bytes of a range in pieces, by one request. Raises Replaced if the object is another than this one, and
        whatever obstore does.
        """
        import obstore

        options: Any = {"range": (begin, end)} | ({"if_match": of.tag} if of.tag.endswith('"') else {})
        got = obstore.get(self._store, of.key, options=options)
        if _object(got.meta)[1:3] != of[1:3]:  # by a server that does not know If-Match
            raise Replaced(EIO, "replaced while it was read")
        yield from got.stream(min_chunk_size=PIECE_BYTES)

    def signed(self, method: str, keys: Iterable[str]) -> list[str]:
        """URLs with which anybody may do that for a minute: for none but the request itself."""
        import obstore

        store: Any = self._store
        wanted: Any = method
        return list(obstore.sign(store, wanted, list(keys), timedelta(seconds=60)))


def _environments_problem() -> str:
    """What is wrong with a variable, without its value; "" if nothing is."""
    for name in _WORDS:
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isprintable()) or " " in value:
            return f"{name} has a space, a line's end or another character in it that it can't have"
    for name in _ENDPOINTS:
        value = os.environ.get(name, "")
        found = _ENDPOINT.fullmatch(value)
        if value and (found is None or int(found[1] or 0) > 65535):
            return f"{name} is not http:// or https://, a host, and perhaps a port and a path"
    return ""


def _wait_to_list(patience: Patience, error: Exception) -> None:
    """Raises OSError, and never FileNotFoundError: a folder that is not there is an empty one, and a bucket is not."""
    try:
        time.sleep(patience.wait_s(error))
    except FileNotFoundError:
        raise OSError(EIO, "there is no such bucket") from None


def _object(found: Any) -> Object:
    changed: datetime = found["last_modified"]
    changed_ns = int(changed.timestamp()) * 1_000_000_000
    return Object(found["path"], found["size"], found["e_tag"] or str(changed_ns), changed_ns)


def _problem_of(error: Exception) -> tuple[bool, OSError]:
    """Whether an error of obstore's lasts, and what it is."""
    if isinstance(error, Replaced):
        return True, error
    if isinstance(error, FileNotFoundError):
        return True, FileNotFoundError(ENOENT, os.strerror(ENOENT))
    text = str(error)
    code = (re.search(r"<Code>([A-Za-z]{1,60})</Code>", text) or ["", ""])[1]
    status = (re.search(r"status code: ([0-9]{3})\b", text) or ["", ""])[1]
    if code in _ARCHIVED:
        return True, Archived(EIO, f"archived ({(re.search(r'<StorageClass>([A-Z_]+)<', text) or ['', code])[1]})")
    if type(error).__name__ == "PreconditionError" or status == "412":
        return True, Replaced(EIO, "replaced while it was read")
    if "169.254." in text or "metadata.google" in text or "CredentialsNotLoaded" in text:
        return True, PermissionError(EACCES, "there are no credentials for it: not in the environment, and no role's")
    if "configured region" in text:
        return True, OSError(EIO, "the bucket is in another region than AWS_REGION says")
    if status in ("401", "403"):
        return True, PermissionError(EACCES, f"the credentials do not allow it: {status} {code}".rstrip())
    if status:
        return _LASTING.fullmatch(status) is not None, OSError(EIO, f"the bucket answers {status} {code}".rstrip())
    if "timed out" in text or "TimedOut" in text:
        return False, OSError(ETIMEDOUT, f"no answer within {REQUEST_S} s")
    if type(error).__name__ == "InvalidPathError":
        return True, KeyRefused(
            EINVAL, f"a key that can't be listed: {text.splitlines()[0][:200]!r}; remove the object"
        )
    lasting = type(error).__name__ not in ("GenericError", "JoinError", "EOFError")
    return lasting, OSError(EIO, "the connection failed" if not lasting else type(error).__name__)
