"""What changed from one index version to another."""

from __future__ import annotations

from toy_pipeline import ToyPipeline

from pipeline.index.changes import changes


def test_images_that_came_went_or_changed_are_told_apart(toy: ToyPipeline) -> None:
    toy.rebuild()
    toy.draw("kind0/00a.png", seed=100)
    toy.draw("zzz/last.png", seed=101)
    toy.draw("kind1/01.png", seed=102)
    (toy.root / "kind0/28.png").unlink()
    (toy.root / "kind1/29.png").unlink()
    toy.rebuild()
    old, new = toy.versions.open("v0001"), toy.versions.open("v0002")
    assert changes(old, new, 10) == {
        "added": {"total": 2, "paths": ["kind0/00a.png", "zzz/last.png"]},
        "removed": {"total": 2, "paths": ["kind0/28.png", "kind1/29.png"]},
        "changed": {"total": 1, "paths": ["kind1/01.png"]},
    }
    back = changes(new, old, 1)
    assert back["added"] == {"total": 2, "paths": ["kind0/28.png"]}
    assert back["removed"] == {"total": 2, "paths": ["kind0/00a.png"]}
    assert [kind["total"] for kind in changes(new, new, 10).values()] == [0, 0, 0]
