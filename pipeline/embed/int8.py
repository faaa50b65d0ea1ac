"""Run the transformer layers of a CLIP or SigLIP image encoder in 8-bit integers, on a CPU.

Only the layers: patches, pooling and projection remain the model's own code, so that one graph
serves every model whose layers have this shape. Weights are 7-bit integers with a scale per column;
activations get their scale from the batch (onnxruntime's DynamicQuantizeMatMul). Seven bits,
because AVX2 adds two products of 8 bits into 16 and would overflow with eight.

Why not torch.onnx.export and onnxruntime.quantization.quantize_dynamic: the same kernels run at the
same speed (ViT-B/32 with random weights on an AVX2 machine, in turns: here 0.94 to 0.99 of their
CPU time per batch, and 0.37 to 0.49 of float32's), but export and quantisation took 100 s where
this graph is built in 6 s. They would need a cache of 90 MB per model, and an exporter that torch
has deprecated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
WEIGHT_MAX = 63
ACTIVATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "quick_gelu": ("QuickGelu", {"alpha": 1.702}),
    "gelu": ("Gelu", {}),
    "gelu_pytorch_tanh": ("FastGelu", {}),
}


def can_run(model: Any) -> bool:
    """Tell whether the image encoder is made of the layers that this module knows."""
    if getattr(model, "vision_model", None) is None or model.config.model_type == "siglip2":
        return False  # NaFlex's layers need the mask of each image's patches
    layers = getattr(getattr(_vision(model), "encoder", None), "layers", None)
    if not layers or _vision(model).config.hidden_act not in ACTIVATIONS:
        return False
    modules = ("self_attn.q_proj", "self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc2")
    names = {name for name, _ in layers[0].named_modules()}
    return names.issuperset(modules)


def make_encoder(model: Any, threads: int) -> Any:
    """Return a module to use in place of the vision model's `encoder`."""
    import onnxruntime
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads must not spin: the cores decode the next images meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _Graph(_vision(model)).build(), options, providers=["CPUExecutionProvider"]
    )

    class Int8Encoder(torch.nn.Module):
        def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> BaseModelOutput:
            hidden = session.run(None, {"x": inputs_embeds.float().contiguous().numpy()})[0]
            return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))

    return Int8Encoder()


def _vision(model: Any) -> Any:
    return getattr(model, "vision_model", None)


class _Graph:
    """The layers as an ONNX graph: (n, tokens, width) float32 -> the same, or the first token's."""

    def __init__(self, vision: Any) -> None:
        self._layers = vision.encoder.layers
        self._config = vision.config
        # CLIP reads nothing but its first token's last state; SigLIP's head attends to all.
        self._first_only = "clip" in vision.config.model_type and not hasattr(vision, "head")
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def build(self) -> bytes:
        """Return the encoder as the bytes of an ONNX model."""
        from onnx import TensorProto, helper

        hidden, addend = "x", ""  # the state of the tokens is their sum
        for number, layer in enumerate(self._layers):
            last = self._first_only and number == len(self._layers) - 1
            hidden, addend = self._layer(f"{number}.", layer, hidden, addend, last)
        self._node("Add", [hidden, addend], ["y"])
        width = self._config.hidden_size
        graph = helper.make_graph(
            self._nodes,
            "layers",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "tokens", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "kept", width])],
            self._constants,
        )
        versions = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=9)
        return bytes(model.SerializeToString())

    def _layer(
        self, name: str, layer: Any, hidden: str, addend: str, first_only: bool
    ) -> tuple[str, str]:
        attention, width = layer.self_attn, self._config.hidden_size
        normed, hidden = self._norm(f"{name}norm1", layer.layer_norm1, hidden, addend)
        q, k, v = f"{name}q", f"{name}k", f"{name}v"
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        if first_only:
            both = self._linear(f"{name}kv", normed, *parts[1:])
            self._node(
                "Split", [both, self._constant(f"{name}halves", [width] * 2)], [k, v], axis=2
            )
            start, end = self._constant(f"{name}start", [0]), self._constant(f"{name}end", [1])
            axis = self._constant(f"{name}axis", [1])
            normed = self._node("Slice", [normed, start, end, axis], [f"{name}first"])
            hidden = self._node("Slice", [hidden, start, end, axis], [f"{name}kept"])
            self._linear(q, normed, parts[0])
        else:
            all3 = self._linear(f"{name}qkv", normed, *parts)
            thirds = self._constant(f"{name}thirds", [width] * 3)
            self._node("Split", [all3, thirds], [q, k, v], axis=2)
        heads = self._config.num_attention_heads
        mixed = self._node(
            "MultiHeadAttention", [q, k, v], [f"{name}mixed"], MICROSOFT, num_heads=heads
        )
        mixed = self._linear(f"{name}out", mixed, attention.out_proj)
        normed, hidden = self._norm(f"{name}norm2", layer.layer_norm2, hidden, mixed)
        wide = self._linear(f"{name}fc1", normed, layer.mlp.fc1)
        activation, options = ACTIVATIONS[self._config.hidden_act]
        wide = self._node(activation, [wide], [f"{name}act"], MICROSOFT, **options)
        return hidden, self._linear(f"{name}fc2", wide, layer.mlp.fc2)

    def _norm(self, name: str, norm: Any, hidden: str, addend: str) -> tuple[str, str]:
        """Add, then normalise -> the normalised and the added."""
        scale = self._constant(f"{name}.w", norm.weight.detach().numpy())
        shift = self._constant(f"{name}.b", norm.bias.detach().numpy())
        if not addend:
            inputs = [hidden, scale, shift]
            out = self._node("LayerNormalization", inputs, [name], axis=-1, epsilon=norm.eps)
            return out, hidden
        inputs, outputs = [hidden, addend, scale, shift], [name, "", "", f"{name}.sum"]
        self._node("SkipLayerNormalization", inputs, outputs, MICROSOFT, epsilon=norm.eps)
        return name, outputs[-1]

    def _linear(self, name: str, x: str, *layers: Any) -> str:
        """Multiply by the layers' weights, side by side, in integers."""
        import torch

        # In torch and in the weights' own order, (out, in): a third of the time that numpy takes
        # for the transposed, and a worker's start waits for it.
        weight = torch.cat([each.weight.detach() for each in layers])
        bias = torch.cat([each.bias.detach() for each in layers])
        scale = (weight.abs().amax(1) / WEIGHT_MAX).clamp_min_(1e-12)
        whole = (weight / scale[:, None]).round_().to(torch.int8)
        values = {
            "w": whole.t().contiguous().numpy(),
            "scale": scale.numpy(),
            "zero": np.zeros(len(scale), np.int8),
            "b": bias.numpy(),
        }
        inputs = [x, *(self._constant(f"{name}.{key}", value) for key, value in values.items())]
        return self._node("DynamicQuantizeMatMul", inputs, [name], MICROSOFT)

    def _constant(self, name: str, value: Array | list[int]) -> str:
        from onnx import numpy_helper

        array = np.array(value, np.int64) if isinstance(value, list) else value
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **options: Any
    ) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **options))
        return outputs[0]
