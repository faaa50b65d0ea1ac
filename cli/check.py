"""`imgrec check`: prove, thing by thing, that this machine can work; or say what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from cli.checks import CheckFailed, Checks, corrected
from cli.output import json_option, print_json
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError
from pipeline.urls import without_password
from workers.routes import QUEUES

FAILED = 4


@dataclass(frozen=True)
class CheckResult:
    """One thing that was tried: what came of it and, where it failed, the next command."""

    name: str
    ok: bool
    found: str
    next: str = ""


@dataclass(frozen=True)
class Check:
    """Something to prove: `prove` says what it found, or raises."""

    name: str
    run_check: Callable[[], str]
    next: str = "imgrec check"

    def run(self) -> CheckResult:
        try:
            return CheckResult(self.name, True, self.run_check())
        except CheckFailed as failed:
            return CheckResult(self.name, False, failed.found, failed.next)
        except ImgrecError as error:
            return CheckResult(self.name, False, str(error), self.next)
        except Exception as error:  # a bug in one line must not hide the others
            found = f"unexpected {type(error).__name__}: {without_password(str(error))}"
            return CheckResult(self.name, False, found, "this is a bug: report this line")


@click.command()
@click.option("--no-model", is_flag=True, help="Do not load the models, which takes some seconds.")
@json_option
@pass_wiring
def check(wiring: Wiring, no_model: bool, as_json: bool) -> int:
    """Check everything that imgrec needs.

    Each failure comes with the next command to run.
    """
    proofs = []
    for each in _checks(wiring, no_model):
        proof = each.run()
        proofs.append(proof)
        if not as_json:
            mark = click.style("ok  ", fg="green") if proof.ok else click.style("FAIL", fg="red")
            click.echo(f"{mark} {proof.name}: {proof.found}")
            if proof.next:
                click.echo(f"     next: {proof.next}")
    good = all(proof.ok for proof in proofs)
    if as_json:
        print_json({"ok": good, "checks": [asdict(proof) for proof in proofs]})
    return 0 if good else FAILED


def _checks(wiring: Wiring, no_model: bool) -> list[Check]:
    try:
        return _all_checks(wiring, no_model)
    except ImgrecError as error:
        wrong = CheckFailed(
            str(error), "correct it in .env or in the environment, then: imgrec check"
        )

    def tell() -> str:
        raise wrong

    return [Check("settings", tell)]


def _all_checks(wiring: Wiring, no_model: bool) -> list[Check]:
    settings, checks = wiring.settings, Checks(wiring)
    found = [Check("redis", checks.redis, corrected("REDIS_URL"))]
    if settings.cache_url and settings.cache_url != settings.redis_url:
        found.append(Check("cache", checks.cache, corrected("CACHE_URL")))
    found.append(Check("database", checks.database, corrected("DATABASE_URL")))
    found.append(Check("disk", checks.disk))
    if not no_model:
        device = "nvidia-smi, which shows whether the driver works; or set DEVICE=cpu in .env"
        found.append(Check("device", checks.device, device))
        found.append(Check("model", checks.model, corrected("EMBEDDING_MODEL")))
        if settings.use_bg_removal:
            weights = "make weights, or set USE_BG_REMOVAL=false in .env"
            found.append(Check("background removal", checks.removal, weights))
    found.append(Check("index", checks.index))
    found += [Check(f"worker on {q}", checks.worker(q)) for q in QUEUES]
    found.append(Check("settings of the workers", checks.settings_of_workers))
    return found
