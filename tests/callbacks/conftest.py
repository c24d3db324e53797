from __future__ import annotations

import pytest

import toy


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> toy.Watch:
    return toy.Watch(monkeypatch)
