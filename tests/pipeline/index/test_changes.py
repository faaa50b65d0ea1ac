"""What changed from one index version to another."""

from __future__ import annotations

from toy_pipeline import ToyPipeline

from pipeline.index.changes import changes


def test_images_that_came_went_or_changed_are_told_apart(shop: ToyPipeline) -> None:
    shop.rebuild()
    shop.draw("kind0/00a.png", seed=100)
    shop.draw("zzz/last.png", seed=101)
    shop.draw("kind1/01.png", seed=102)
    (shop.root / "kind0/28.png").unlink()
    (shop.root / "kind1/29.png").unlink()
    shop.rebuild()
    old, new = shop.versions.open("v0001"), shop.versions.open("v0002")
    assert changes(old, new, 10) == {
        "added": {"total": 2, "paths": ["kind0/00a.png", "zzz/last.png"]},
        "removed": {"total": 2, "paths": ["kind0/28.png", "kind1/29.png"]},
        "changed": {"total": 1, "paths": ["kind1/01.png"]},
    }
    back = changes(new, old, 1)
    assert back["added"] == {"total": 2, "paths": ["kind0/28.png"]}
    assert back["removed"] == {"total": 2, "paths": ["kind0/00a.png"]}
    assert [kind["total"] for kind in changes(new, new, 10).values()] == [0, 0, 0]
