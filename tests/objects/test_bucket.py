"""A bucket as the source of a cache: what its listing says, what a look asks for, and what becomes of odd objects."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobs import gz, layer
from buckets import ACCESS_KEY, BUCKET, SECRET, TOP, Served, blob_key, fill, served
from chunkd.errors import CacheUnusable, SettingInvalid
from chunkd.model import HEX_DIGITS
from chunkd.names.beside import read_names, reading_beside
from chunkd.names.name import Part
from chunkd.objects import bucket as bucket_module
from chunkd.objects import reader, store
from chunkd.objects.bucket import PLACEHOLDER, BucketSource, check_usable
from chunkd.objects.choose import bucket_of
from chunkd.objects.store import Bucket, EnvironmentUnusable, ExtraMissing, Object
from chunkd.settings.config import load
from chunkd.sources import listing
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import Listing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(tmp_path / "files") as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(store, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(store, "LONGEST_PAUSE_S", 0.02)
        yield found


def walked(source: BucketSource | FolderSource) -> dict[str, Listing]:
    return {found.folder: found for found in itertools.islice(listing.walk(source, "", lambda _: None), 1000)}


def blobs(found: dict[str, Listing]) -> set[str]:
    return {one.blob_path(name) for one in found.values() for name in one.blobs}


def test_a_listing_has_all_that_one_of_the_files_has(place: Served) -> None:
    fill(place)
    source = BucketSource(place.url)
    place.proxy.requests.clear()
    found, files = walked(source), walked(FolderSource(str(place.files)))
    assert blobs(found) == blobs(files)
    assert len(blobs(found)) == 3 + 3 + 5
    assert {one.folder for one in found.values() if one.problem} == set()
    # Above the 256 folders one request each, and one for all that is in one of these.
    pairs = {path.split("/")[-3] for path in blobs(found)}
    assert len(place.proxy.requests) == len(["docker", "registry", "v2", "blobs", "sha256", "."]) + len(pairs)
    for path in blobs(found):
        [mark] = [one.marks[name] for one in found.values() for name in one.blobs if one.blob_path(name) == path]
        assert mark.stored_bytes == (place.files / path).stat().st_size


def test_the_mark_is_the_etag_and_the_size_and_not_the_time(place: Served) -> None:
    key = blob_key(place.blob(b"one"))
    source = BucketSource(place.url)

    def mark() -> object:
        with source.view() as view:
            return view.look(key).mark

    before = mark()
    place.put(key, b"one")
    assert mark() == before
    place.put(key, b"two")
    assert mark() != before
    assert Bucket(f"s3://{BUCKET}").device == source.bucket.device != Bucket("s3://another").device


def test_another_endpoint_is_another_bucket(place: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Bucket(place.url).device
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert Bucket(place.url).device != here


def test_a_listing_serves_three_looks_and_then_the_bucket_is_asked(place: Served) -> None:
    key = blob_key(place.blob(gz(layer(1))))
    source = BucketSource(place.url)
    walked(source)
    place.proxy.requests.clear()
    with source.view() as view:
        first, second, third = view.look(key), view.look(key), view.look(key)
        assert (first == second == third, place.proxy.requests) == (True, [])
        view.look(key)
        assert [request.method for request in place.proxy.requests] == ["HEAD"]
        place.delete(key)
        with pytest.raises(FileNotFoundError):
            view.look(key)


def test_the_look_after_the_reading_asks_only_for_an_object_that_the_reader_found_changed(place: Served) -> None:
    key, other = blob_key(place.blob(gz(layer(1)))), blob_key(place.blob(gz(layer(2))))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.send(reader.READY)
    source = BucketSource(place.url, lambda *_: ours)
    walked(source)
    place.proxy.requests.clear()

    def asked() -> list[str]:
        found = [request.of for request in place.proxy.requests]
        place.proxy.requests.clear()
        return found

    with source.view() as view:
        for path in (key, other):
            before = view.look(path), view.look(path)
            descriptor, seen = view.open(path)
            os.close(descriptor)
            assert before == (seen, seen)
        assert view.look(key) == view.look(key)
        assert asked() == [f"/{BUCKET}/{key}"]  # for the second one
        tag = source.listed[other][0].tag
        place.put(other, gz(layer(3)))
        asked()
        theirs.send(json.dumps([other, tag, "", False]).encode() + b"\n")
        assert view.look(other).mark != seen.mark
        assert asked() == [f"/{BUCKET}/{other}"]
    assert source.unread == {}
    source.close()
    theirs.close()


def test_what_a_listing_lacks_is_asked_for_though_its_reading_said_nothing(place: Served) -> None:
    """It was removed after its last byte had been read, and the index does not have it yet."""
    gone, there = blob_key(place.blob(gz(layer(1)))), blob_key(place.blob(gz(layer(2))))
    ours, theirs = socket.socketpair()
    theirs.send(reader.READY)
    source = BucketSource(place.url, lambda *_: ours)
    walked(source)
    with source.view() as view:
        for path in (gone, there):
            os.close(view.open(path)[0])
        place.delete(gone)
        walked(source)
        place.proxy.requests.clear()
        view.look(there)
        assert place.proxy.requests == []
        with pytest.raises(FileNotFoundError):
            view.look(gone)
    source.close()
    theirs.close()


def test_looks_are_asked_for_together(place: Served) -> None:
    keys = [blob_key(place.blob(b"%d" % number)) for number in range(40)]
    source = BucketSource(place.url)
    with source.view() as view:
        view.look_ahead([*keys, "none"])
        place.proxy.fault = lambda _: "503"
        assert [view.look(key).mark.stored_bytes for key in keys] == [1] * 10 + [2] * 30
        with pytest.raises(FileNotFoundError):
            view.look("none")


def test_after_an_absent_object_the_bucket_itself_is_asked_for(place: Served) -> None:
    source = BucketSource(place.url)
    source.look_at_root()
    place.proxy.requests.clear()
    source.look_at_root()
    assert place.proxy.requests == []
    with source.view() as view, pytest.raises(FileNotFoundError):
        view.look("none")
    place.proxy.requests.clear()
    place.proxy.fault = lambda _: "503"
    with pytest.raises(OSError, match="503"):
        source.look_at_root()


def test_placeholders_and_what_is_no_blob_are_ignored_and_the_empty_blob_is_one(place: Served) -> None:
    folder = "team/app/blobs/sha256"
    real, hidden = hashlib.sha256(b"real").hexdigest(), hashlib.sha256(b"hidden").hexdigest()
    place.put(f"{folder}/{real}", b"real")
    place.put(f"{folder}/{hidden}", b"")
    place.put(f"{folder}/{hashlib.sha256(b'').hexdigest()}", b"")
    place.put(f"{folder}/note", b"what?")
    place.client.put_object(Bucket=BUCKET, Key=f"{folder}/", Body=b"")
    other = hashlib.sha256(b"elsewhere").hexdigest()
    place.client.put_object(Bucket=BUCKET, Key=blob_key(other), Body=b"")
    found = walked(BucketSource(place.url))
    assert blobs(found) == {f"{folder}/{real}", f"{folder}/{hashlib.sha256(b'').hexdigest()}"}
    assert dict(path for one in found.values() for path in one.ignored) == {
        f"{folder}/{hidden}": PLACEHOLDER,
        blob_key(other): PLACEHOLDER,
        f"{folder}/note": "not the name of a digest",
    }
    assert set(bucket_module.EMPTY) == {hashlib.new(name).hexdigest() for name in HEX_DIGITS}


def test_what_fails_while_it_is_listed_is_a_problem_and_nothing_is_taken_for_gone(place: Served) -> None:
    fill(place)
    place.proxy.fault = lambda request: "503" if "sha256%2F" in request.of and "%2F" in request.of[-12:] else ""
    found = walked(BucketSource(place.url))
    problems = {one.folder: one.problem for one in found.values() if one.problem}
    assert problems
    assert all("503" in problem for problem in problems.values())


def test_names_are_those_that_the_files_have(place: Served) -> None:
    fill(place)
    base = f"{place.url}/{TOP}"
    source = BucketSource(place.url)

    def parts() -> dict[str, Part]:
        read = read_names(base, "unused", root=place.url, opened=source.beside)
        return {part.where: part for part in read if part is not None}

    def told(found: dict[str, Part]) -> dict[str, object]:
        return {
            where: ([name._replace(at_ns=0) for name in part.names or ()], part.problem)
            for where, part in found.items()
        }

    files = read_names(str(place.files / TOP), "unused")
    found = parts()
    assert told(found) == told({part.where: part for part in files if part is not None})
    assert set(found) == {"shop/api", "web"}
    assert all(name.at_ns > 10**18 for part in found.values() for name in part.names or ())
    # What was read is not read again while its ETag is the same.
    place.proxy.requests.clear()
    assert told(parts()) == told(found)
    assert not [
        request for request in place.proxy.requests if "list-type" not in request.of and request.method == "GET"
    ]
    place.put(f"{TOP}/repositories/web/_manifests/tags/latest/current/link", b"sha256:" + b"a" * 64)
    assert {name.digest.hex for name in parts()["web"].names or () if name.tag == "latest"} >= {"a" * 64}
    assert list(filter(None, reading_beside(place.url, source.beside)(base)))


def test_a_layout_in_a_bucket_has_names(place: Served) -> None:
    manifest = "sha256:" + "b" * 64
    row = f'{{"digest": "{manifest}", "annotations": {{"org.opencontainers.image.ref.name": "v1"}}}}'
    place.put("team/app/index.json", f'{{"manifests": [{row}]}}'.encode())
    source = BucketSource(place.url)
    [part] = filter(None, read_names(f"{place.url}/team/app", "team/app", opened=source.beside))
    assert [name.text for name in part.names or ()] == ["team/app:v1"]


# --- settings, credentials and what is missing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket", "s3://bucket/p?sig=secret", "gs://secret@b/p", "az://a:secret@b"]
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    for given in ({"caches": [url]}, {}):
        with pytest.raises(SettingInvalid) as raised:
            load(given, {"HOME": "/x", "CHUNKD_CONFIG": "/dev/null"} | ({} if given else {"CHUNKD_CACHES": url}))
        assert "secret@" not in str(raised.value)
        assert "=secret" not in str(raised.value)


def test_urls_and_folders_are_caches_beside_each_other() -> None:
    def caches(text: str) -> tuple[str, ...]:
        return load({}, {"HOME": "/x", "CHUNKD_CONFIG": "/dev/null", "CHUNKD_CACHES": text}).caches

    assert caches("s3://one/a/:/var/lib:gs://two") == ("s3://one/a", "/var/lib", "gs://two")
    alike = ("s3://one:s3://one/a", "s3://one:s3://one/")
    for wrong in (*alike, "s3://", "s3:///a", "s3://one//a", "s3://one/../a", "s3://a b", "/a:s3://one@b"):
        with pytest.raises(SettingInvalid):
            caches(wrong)
    assert caches("s3://one/a:s3://one/ab") == ("s3://one/a", "s3://one/ab")


def test_without_obstore_the_error_has_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'chunkd\[s3\]'"):
        bucket_of("s3://bucket")
    assert bucket_of("/var/lib") is None


def test_what_can_not_be_used_is_named_without_its_secret(place: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CacheUnusable, match="no object"):
        check_usable(f"{place.url}/none")
    with pytest.raises(CacheUnusable, match="404 NoSuchBucket"):
        check_usable("s3://another-bucket")
    place.proxy.fault = lambda _: "503"
    with pytest.raises(CacheUnusable, match="503") as raised:
        check_usable(place.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CacheUnusable, match="connection failed") as unreachable:
        check_usable(place.url)
    for error in (raised, unreachable):
        assert ACCESS_KEY not in str(error.value)
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("AWS_ENDPOINT_URL", value)
            for value in ("minio:9000", "http:///x", "http://a b", "http://h:99999", "ftp://h")
        ),
        *(
            ("AWS_ENDPOINT_URL", value)
            for value in ("http://[::1", "https://u:p@h", "https://h?sig=s", "http://\u00e9")
        ),
        *((name, "secret\n") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")),
        ("AWS_REGION", "us east"),
    ],
)
def test_a_variable_that_can_not_be_used_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The library would panic at most of them, with a page of its own."""
    monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentUnusable) as raised:
        bucket_of("s3://bucket")
    assert name in str(raised.value)
    assert value not in str(raised.value)


@pytest.mark.parametrize("value", ["https://h", "HTTP://h-1.x_y:9000/", "http://[::1]:9/base", "http://127.0.0.1", ""])
def test_an_endpoint_may_be_any_url_without_a_secret(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    assert bucket_of("s3://bucket") is not None


def test_a_mark_fits_the_index() -> None:
    for tag in ("", '"a"', "1"):
        mark = Object("key", 1, tag, 5).mark(Bucket.__new__(Bucket).__dict__.get("device", 1))
        assert 0 <= mark.inode < 1 << 63
        assert mark.ctime_ns == 1


def test_a_bucket_that_is_gone_is_no_empty_folder(place: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library raises for it: an empty folder would subtract all."""
    fill(place)
    source = BucketSource(place.url)

    def none(*_: object, **__: object) -> None:
        raise FileNotFoundError("https://registry.s3.amazonaws.com/?list-type=2&X-Amz-Signature=1 is not there")

    monkeypatch.setattr("obstore.list", none)
    monkeypatch.setattr("obstore.list_with_delimiter", none)
    [found] = walked(source).values()
    assert found.problem == f"{place.url}/: there is no such bucket"
    with pytest.raises(OSError, match="no such bucket"):
        source.look_at_root()
    monkeypatch.setattr("obstore.get", none)
    with pytest.raises(FileNotFoundError) as raised:
        source.bucket.read("key", 10)
    assert "Signature" not in str(raised.value)


@pytest.mark.parametrize("key", ["a//b", "a/../b", "a\tb"])
def test_a_key_that_cannot_be_listed_is_named(place: Served, key: str) -> None:
    place.put(key, b"1")
    with pytest.raises(OSError, match="b") as raised:
        list(Bucket(place.url).keys(""))
    assert repr(key).strip("'") in str(raised.value)


@pytest.mark.parametrize(("key", "folder"), [("a//b", "a"), ("a/../b", "a"), ("/a", None), ("//", None), ("//a", None)])
def test_a_key_that_cannot_be_listed_costs_its_folder_alone(place: Served, key: str, folder: str | None) -> None:
    """Even if it is the first of all, which a look at the root meets."""
    fill(place)
    expected = blobs(walked(BucketSource(place.url)))
    place.client.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    check_usable(place.url)
    source = BucketSource(place.url)
    source.look_at_root()
    assert blobs(walked(source)) == expected
    beside = next(iter(sorted(expected))).rpartition("/")[0].rpartition("/")[0]
    place.client.put_object(Bucket=BUCKET, Key=f"{beside}//b", Body=b"1")
    found = walked(BucketSource(place.url))
    assert {folder for folder, one in found.items() if one.problem} == {beside, folder} - {None}
    assert blobs(found) == {path for path in expected if not path.startswith(f"{beside}/")}


@pytest.mark.parametrize("key", ["a\tb", "a\tb/c", "../a"])
def test_a_key_right_below_the_root_that_cannot_be_listed_makes_the_cache_unusable(place: Served, key: str) -> None:
    fill(place)
    place.client.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    with pytest.raises(CacheUnusable, match="remove the object"):
        check_usable(place.url)
    with pytest.raises(OSError, match="remove the object"):
        BucketSource(place.url).look_at_root()
    check_usable(f"{place.url}/{TOP}")


def test_small_objects_are_read_as_a_whole_or_refused(place: Served) -> None:
    place.put("small", b"12345")
    bucket = Bucket(place.url)
    assert bucket.read("small", 5)[0] == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        bucket.read("small", 4)
    with pytest.raises(FileNotFoundError):
        bucket.read("none", 4)


@pytest.mark.parametrize(
    "said", [b"no JSON\n", b"[]\n", b'[["key"], 1, 2, 3]\n', b'{"a": 1}\n', b"[" * 30_000 + b"\n", b"x" * 70_000]
)
def test_a_reader_that_says_what_none_does_is_left(place: Served, said: bytes) -> None:
    key = blob_key(place.blob(b"one"))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.send(reader.READY)
    source = BucketSource(place.url, lambda *_: ours)
    with source.view() as view:
        descriptor, _ = view.open(key)
        os.close(descriptor)
        theirs.send(b'["other", "tag", "503", false]\n')
        view.look(key)
        assert set(source.unread) == {"other"}
        theirs.settimeout(10)
        theirs.sendall(said)
        for _ in range(3):
            view.look(key)
    assert ours.fileno() == -1
    theirs.close()


def test_looks_at_a_bucket_that_does_not_answer_keep_no_process(place: Served) -> None:
    """They are of a cache's thread, which is left behind."""
    program = f"""if True:
        import threading, time
        from chunkd.objects.store import Bucket
        bucket = Bucket("{place.url}")
        threading.Thread(target=bucket.looks, args=(["one", "two"],), daemon=True).start()
        time.sleep(1)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        done = subprocess.run([sys.executable, "-c", program], env=environ, timeout=25, capture_output=True, check=True)
        assert done.stderr == b""
        silent.settimeout(0)
        silent.accept()[0].close()  # they had begun
        silent.accept()[0].close()
