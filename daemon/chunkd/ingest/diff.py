"""A folder's listing against the index, both ways: what differs becomes hints, and nothing is believed yet."""

from __future__ import annotations

import lmdb

from chunkd.index.storage.environment import Store
from chunkd.model import Hint, Place
from chunkd.sources.listing import Listing

LISTED = "listed by a scan"


def differences(
    store: Store, txn: lmdb.Transaction, cache: int, listing: Listing, *, verify: bool
) -> tuple[list[Hint], list[tuple[Place, str]]]:
    """The places to look at, and what is ignored with the reason. With `verify` every known blob is looked at too."""
    known = store.children(txn, "places", cache, listing.folder)
    new = listing.blobs - known
    hints = [Hint(Place(cache, listing.blob_path(name)), LISTED) for name in sorted(new)]
    if verify:
        hints += [Hint(Place(cache, listing.blob_path(name)), "verify") for name in sorted(listing.blobs & known)]
    hints += [Hint(Place(cache, path), "folder listed before its blob") for path in listing.expected]
    if not listing.problem:
        # Below a folder that is listed in turn, the listing of that folder decides.
        gone: list[tuple[str, bytes]] = []
        if len(known) > len(listing.blobs) - len(new):  # else each that is known is one of those blobs
            gone += [("places", name) for name in known - listing.blobs - listing.folders]
        told = {listing.name(path) for path, _ in listing.ignored}
        ignored = store.children(txn, "ignored", cache, listing.folder)
        gone += [("ignored", name) for name in ignored - told - listing.folders]
        for database, name in gone:
            path = listing.path(name)
            places = store.under(txn, database, cache, path) if name.endswith(b"/") else [Place(cache, path)]
            hints += [Hint(place, "not listed by a scan") for place in places]
    return hints, [(Place(cache, path), reason) for path, reason in listing.ignored]
