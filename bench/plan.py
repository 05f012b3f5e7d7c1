"""`chunkd scan --plan` of a registry of a million made-up objects: seconds, memory, and the table that it prints.

    python bench/plan.py [KEYS]

The listing is made up, so what is measured is the counting. Over a network a page of 1,000 keys takes 50 to 100 ms
more.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Iterator

from chunkd.cli.plan import plan_lines
from chunkd.objects import plan
from chunkd.objects.store import PAGE_KEYS, Object
from chunkd.service.plan import calibrate
from chunkd.settings.config import load

TOP = "docker/registry/v2"


def listing(keys: int) -> Iterator[list[Object]]:
    """Two small blobs for a layer, of 5 KB to 640 MB, and links and unfinished uploads beside them."""
    page = []
    for number in range(keys):
        name = hashlib.sha256(b"%d" % number).hexdigest()
        key, size = f"{TOP}/blobs/sha256/{name[:2]}/{name}/data", 5000
        if number % 3 == 0:
            size = 5000 << (int(name[:8], 16) % 18)
        if number % 10 == 8:
            key, size = f"{TOP}/repositories/app/_manifests/revisions/sha256/{name}/link", 71
        elif number % 1000 == 9:
            key, size = f"{TOP}/repositories/app/_uploads/{number}/data", 50_000_000
        page.append(Object(key, size, '"tag"', 1))
        if len(page) == PAGE_KEYS:
            yield page
            page = []
    yield page


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    for _ in listing(keys):
        pass
    made_s = time.process_time() - began_s
    began_s = time.process_time()
    counted = plan.count("s3://registry", "", listing(keys))
    counted_s = time.process_time() - began_s - made_s
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    where = {"url": "s3://registry", "listed_s": counted_s, "is_aws": True}
    where |= {"bucket_region": "eu-west-1", "own_region": "us-east-1"}
    classes = {"STANDARD": (80, 800_000_000), "STANDARD_IA": (15, 150_000_000), "GLACIER": (5, 50_000_000)}
    prices = {"cpu_hour": 0.04, "list_per_1000": 0.005, "get_per_1000": 0.0004, "head_per_1000": 0.0004}
    prices |= {"transfer_per_gb": 0.02, "retrieval_per_gb": 0.01}
    config = load({"caches": ["s3://registry"], "state_dir": "/nowhere"}, {"HOME": "/nowhere"})
    print("\n".join(plan_lines(plan.plan(counted, classes, calibrate(config), 16, where, prices))))
    print()
    print(f"{keys:,} keys counted in {counted_s:.1f} s of a processor, {keys / counted_s:,.0f} a second, {mib:.0f} MiB")


if __name__ == "__main__":
    main()
