"""A GET as a line of a log, in each format that registries write."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pull_oracle import Get

FORMATS = ("combined", "forwarded", "text", "json", "trace")
PROXY = "10.0.0.1"
AGENT = r"docker/24 \"quoted\" x=1"


def line_of(get: Get, form: str, second: int = 0) -> bytes:
    at = datetime.fromisoformat(get.day).replace(tzinfo=UTC).replace(hour=12, second=second % 60)
    kind = "blobs" if ":" in get.reference else "manifests"
    target = f"/v2/{get.repository}/{kind}/{get.reference}"
    status = 307 if get.redirected else 200
    access = f'[{at:%d/%b/%Y:%H:%M:%S} +0000] "GET {target} HTTP/1.1" {status} {get.served_bytes} "" "{AGENT}"'
    if form == "combined":
        return f"{get.client} - - {access}".encode()
    if form == "forwarded":
        return f'{PROXY} - a user {access} "{get.client}, 10.9.9.9"'.encode()
    fields = {
        "http.request.method": "GET",
        "http.request.remoteaddr": f"{get.client}:4711",
        "http.request.uri": target if form != "trace" else target[1:],
        "http.response.status": status,
        "http.response.written": get.served_bytes,
    }
    if form == "trace":
        return json.dumps({"host": "dc118836", "timestamp": f"{at:%Y-%m-%dT%H:%M:%S}.399Z", **fields}).encode()
    fields |= {"level": "info", "msg": "response completed", "time": f"{at:%Y-%m-%dT%H:%M:%S}.152211977Z"}
    if form == "json":
        return json.dumps(fields).encode()
    head = {name: fields.pop(name) for name in ("time", "level", "msg")}
    return " ".join(
        [f"{name}={json.dumps(value)}" for name, value in (head | fields).items()]
        + [f'http.request.useragent="{AGENT}"']
    ).encode()
