"""Train models/imgrec-mini; read from top to bottom.

    python -m tools.imgrec_mini.train --photos DIR --backbone FILE.pt --out models/imgrec-mini

An ImageNet MobileNetV2 (image side) and a new two-layer BERT (text side) learn one space from real
photos that know their class and drawn products that know everything. First the text side learns
its words alone (pretrain_text.py), then both learn together. One step: some pictures, two
random views of each, one caption of each, and one question for every known value; three contrasts:

    text      a view lies nearest to the texts that are true of it, and the other way round
    category  views of the same category, and colour where it is known, lie together
    instance  the two views of one picture lie nearest of all: a copy finds its original

At the end the image side goes part of the way back to its backbone and gets its projection from
many views of each product (finish.py): contrast alone makes all products of one class alike, and
those of a class that it never saw, too.

Everything follows from SEED and the step's number, so a run that was stopped goes on from its last
checkpoint as if it had not been. The last HELD_OUT part of the photos and freshly drawn products
are never trained on: they choose the logit scale and say how well it went.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.train.loss_curve import draw_curves
from tools.imgrec_mini.augment import random_view
from tools.imgrec_mini.backbone import (
    TEXT_CONTEXT,
    build_image_processor,
    build_model,
    load_backbone,
)
from tools.imgrec_mini.calibrate import calibrate
from tools.imgrec_mini.captions import caption, every_claim, random_claim, truth, words
from tools.imgrec_mini.encode import encode_pixels, encode_texts, frozen_part
from tools.imgrec_mini.examples import Example, draw_examples, read_photos, sample_products
from tools.imgrec_mini.finish import finish
from tools.imgrec_mini.loss import contrast, same
from tools.imgrec_mini.pretrain_text import teach_words
from tools.imgrec_mini.reweight_projection import emphasise
from tools.imgrec_mini.tokenizer import build_tokenizer

SEED = 0
SIDE = 192  # pixels of a training view
FINAL_SIDE = 224  # pixels in use: crops make training see products larger than use does
HELD_OUT = 0.1  # of the photos
DRAWN = 4000  # drawn products to train on
DRAWN_HELD_OUT = 400
STEPS = 1400
PHOTOS_IN_BATCH, DRAWN_IN_BATCH = 24, 32
FROZEN_BLOCKS = 6  # edges and textures stay as ImageNet taught them; the other 10 blocks learn
RATES = (5e-4, 1e-3, 2e-4)  # AdamW's peaks: the image side's blocks, its projection, the text side
WEIGHT_DECAY = 0.05
WARM_UP = 50  # steps to the full learning rate; a cosine leads down to zero
AVERAGE = 0.998  # the published weights are a running average of the trained ones
CATEGORY_WEIGHT, INSTANCE_WEIGHT = 0.5, 0.5  # beside the texts' 1.0
SHARPNESS = 10.0  # 1 / temperature between pictures; between texts and pictures it is learnt
LOG_EVERY, SAVE_EVERY = 25, 50  # steps

log = logging.getLogger("tools.imgrec_mini")


def train(photo_folder: Path, backbone: Path, out: Path, work: Path, steps: int) -> None:
    """Train for `steps` steps, or go on from the checkpoint in `work`; write the folder `out`."""
    torch.manual_seed(SEED)
    log.info("reading photos, drawing products ...")
    photos, held_out = split(read_photos(photo_folder))
    drawn = draw_examples(SEED, DRAWN + DRAWN_HELD_OUT, work / "drawn.npy")
    drawn, held_out = drawn[:DRAWN], held_out + drawn[DRAWN:]
    known = [example.facts for example in (*photos, *drawn)]
    questions = every_claim(known)

    tokenizer = build_tokenizer(words(known), TEXT_CONTEXT)
    model = build_model(len(tokenizer), FINAL_SIDE)
    load_backbone(model.vision_model, backbone)
    # Batch statistics stay those of ImageNet: a batch of half drawings would spoil them.
    model.vision_model.eval().to(memory_format=torch.channels_last)
    lower = frozen_part(model.vision_model, FROZEN_BLOCKS)
    groups = trainable(model)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rate} for group, rate in zip(groups, RATES, strict=True)],
        weight_decay=WEIGHT_DECAY,
    )
    trained = [parameter for group in groups for parameter in group]
    curves: dict[str, list[float]] = {"text": [], "category": [], "instance": []}
    start = 0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, curves, start = state["average"], state["curves"], state["step"]
        log.info("going on after step %d", start)
    else:
        teach_words(model, tokenizer, known, SEED)
        average = [parameter.detach().clone() for parameter in trained]

    weights = class_weights(photos)
    began, sums = time.monotonic(), np.zeros(3)
    for step in range(start, steps):
        rng = np.random.default_rng([SEED, step])
        torch.manual_seed(SEED + step)  # dropout
        for group, peak in zip(optimizer.param_groups, RATES, strict=True):
            group["lr"] = peak * schedule(step, steps)

        picks = rng.choice(len(photos), PHOTOS_IN_BATCH, replace=False, p=weights)
        batch = [photos[n] for n in picks]
        batch += [drawn[n] for n in rng.choice(len(drawn), DRAWN_IN_BATCH, replace=False)]
        facts = [example.facts for example in batch for _ in range(2)]  # two views of each
        claims = [random_claim(example.facts, rng) for example in batch] + questions
        views = [random_view(example.image, SIDE, rng) for example in batch for _ in range(2)]
        images = encode_pixels(model, np.stack(views), lower)  # (2b, d)
        texts = encode_texts(model, tokenizer, [caption(claim, rng) for claim in claims])  # (t, d)

        matches = torch.from_numpy(truth(facts, claims))  # (2b, t)
        logits = model.logit_scale.exp() * images @ texts.T
        between = SHARPNESS * images @ images.T  # (2b, 2b)
        categories = torch.from_numpy(numbered([fact["category"] for fact in facts]))
        colors = torch.from_numpy(numbered([fact.get("color", "") for fact in facts]))
        # A red and a blue shoe are neither pulled together nor pushed apart; photos all are "".
        kin = same(categories).masked_fill(
            (categories[:, None] == categories) & (colors[:, None] != colors), 0
        )
        instances = torch.arange(len(batch)).repeat_interleave(2)
        losses = torch.stack(
            [
                (contrast(logits, matches) + contrast(logits.T, matches.T)) / 2,
                contrast(between, kin),
                contrast(between, same(instances)),
            ]
        )
        loss = losses @ torch.tensor([1.0, CATEGORY_WEIGHT, INSTANCE_WEIGHT])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()

        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            for mean, parameter in zip(average, trained, strict=True):
                mean.lerp_(parameter, 1 - decay)

        sums += losses.detach().numpy()
        if (step + 1) % LOG_EVERY == 0:
            for name, value in zip(curves, sums / LOG_EVERY, strict=True):
                curves[name].append(float(value))
            pace = (time.monotonic() - began) / (step + 1 - start)
            shown = " ".join(f"{name} {values[-1]:.3f}" for name, values in curves.items())
            left = pace * (steps - step - 1) / 60
            log.info("step %d of %d: %s (%.0f min left)", step + 1, steps, shown, left)
            sums[:] = 0
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"average": average, "curves": curves, "step": step + 1}
            save_checkpoint(state, checkpoint)

    with torch.no_grad():
        for mean, parameter in zip(average, trained, strict=True):
            parameter.copy_(mean)
    model.eval()
    emphasise(model, tokenizer, sorted({facts["category"] for facts in known}))
    log.info("computing the projection ...")
    untrained = build_model(len(tokenizer), FINAL_SIDE).vision_model
    load_backbone(untrained, backbone)
    model = finish(
        model,
        untrained,
        tokenizer,
        photos,
        drawn,
        sample_products(SEED, DRAWN),
        questions,
        FROZEN_BLOCKS,
        (SIDE, FINAL_SIDE),
        SEED,
    )
    calibrate(model, tokenizer, lower, held_out, questions, FINAL_SIDE)
    out.mkdir(parents=True, exist_ok=True)
    model.to(dtype=torch.float16, memory_format=torch.contiguous_format).save_pretrained(out)
    tokenizer.save_pretrained(out)
    build_image_processor(FINAL_SIDE).save_pretrained(out)
    draw_curves(curves, LOG_EVERY).save(out / "loss.png", optimize=True)
    log.info("written to %s", out)


def split(photos: list[Example]) -> tuple[list[Example], list[Example]]:
    """Return the photos to learn from and those that are held out."""
    order = np.random.default_rng(SEED).permutation(len(photos))
    border = round(len(photos) * (1 - HELD_OUT))
    return [photos[n] for n in order[:border]], [photos[n] for n in order[border:]]


def trainable(model: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Freeze the image side's lower blocks; return the parameters in the order of `RATES`."""
    vision = model.vision_model
    vision.requires_grad_(False)
    blocks = torch.nn.ModuleList([*vision.layer[FROZEN_BLOCKS:], vision.conv_1x1])
    blocks.requires_grad_(True)
    return (
        list(blocks.parameters()),
        [*model.visual_projection.parameters(), model.logit_scale],
        [*model.text_model.parameters(), *model.text_projection.parameters()],
    )


def class_weights(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return sampling weights between "each photo alike" and "each class alike"."""
    numbers = numbered([example.facts["category"] for example in examples])
    weights = np.bincount(numbers)[numbers] ** -0.5
    return np.asarray(weights / weights.sum(), np.float64)


def numbered(labels: list[str]) -> NDArray[np.int64]:
    return np.unique(labels, return_inverse=True)[1]


def schedule(step: int, steps: int) -> float:
    """Return the learning rate's share of its peak."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_checkpoint(state: dict[str, Any], file: Path) -> None:
    """Write so that a kill at any moment leaves the old checkpoint or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model imgrec-mini.")
    parser.add_argument("--photos", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--backbone", type=Path, required=True, help="ImageNet weights, a .pt file")
    parser.add_argument("--out", type=Path, default=Path("models/imgrec-mini"))
    parser.add_argument("--work", type=Path, default=Path("data/training-mini"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(os.cpu_count() or 1)
    train(options.photos, options.backbone, options.out, options.work, options.steps)


if __name__ == "__main__":
    main()
