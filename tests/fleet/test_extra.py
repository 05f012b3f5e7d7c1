"""Without `chunkd[fleet]` all else works, and what needs it names the line that installs it."""

from __future__ import annotations

import sys

import pytest

from chunkd.fleet import extra


@pytest.mark.parametrize("package", extra.PACKAGES)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    extra.needed()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(extra.FleetMissing) as missing:
        extra.needed()
    assert package in str(missing.value)
    assert "pip install 'chunkd[fleet]'" in str(missing.value)
