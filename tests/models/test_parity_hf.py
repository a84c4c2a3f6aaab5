"""The decoder against the torch Chameleon of transformers with the same random weights: no code is shared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import LossConfig, TransformerConfig
from chameleon_jax.models import transformer
from chameleon_jax.training import losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = TransformerConfig(
    vocab_size=96,
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_seq_len=32,
    qk_norm_groups=2,
    compute_dtype="float32",
    attention_chunk=5,
)


def torch_model(config: TransformerConfig):
    """transformers' Chameleon of these sizes with every parameter random, norms and biases too."""
    torch.manual_seed(0)
    model = transformers.ChameleonForConditionalGeneration(
        transformers.ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_seq_len,
            swin_norm=config.norm_order == "swin",
            vocabulary_map={"<image>": 8, "IMGIMGBZ": 4},
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8},
            attn_implementation="eager",
        )
    ).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
        for layer in model.model.layers:  # heads of a group share their QK-norm
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                for parameter in (norm.weight, norm.bias):
                    group = parameter.shape[0] // config.qk_norm_groups
                    parameter.copy_(parameter[::group].repeat_interleave(group, dim=0))
    return model.eval()


def to_our_tree(model, config: TransformerConfig, of=lambda parameter: parameter):
    """Parameters of the torch model (or what `of` gives for each, say its gradient) in our layout."""
    c = config

    def stack(path, shape, transpose=True):
        arrays = []
        for layer in model.model.layers:
            module = layer
            for part in path.split("."):
                module = getattr(module, part)
            array = of(module).detach().numpy()
            arrays.append((array.T if transpose else array).reshape(shape))
        return jnp.asarray(np.stack(arrays))

    def grouped(path, heads):
        # A gradient of a shared parameter is the sum over the heads that share it, a value is that of any of them.
        array = stack(path, (c.qk_norm_groups, heads // c.qk_norm_groups, c.head_dim), transpose=False)
        return array.sum(2) if of(model.lm_head.weight) is not model.lm_head.weight else array[:, :, 0]

    def norm(name, heads):
        return {"scale": grouped(f"self_attn.{name}.weight", heads), "bias": grouped(f"self_attn.{name}.bias", heads)}

    def top(parameter):
        return jnp.asarray(of(parameter).detach().numpy())

    return {
        "embed": top(model.model.embed_tokens.weight),
        "layers": {
            "attn": {
                "wq": stack("self_attn.q_proj.weight", (c.d_model, c.n_heads, c.head_dim)),
                "wk": stack("self_attn.k_proj.weight", (c.d_model, c.n_kv_heads, c.head_dim)),
                "wv": stack("self_attn.v_proj.weight", (c.d_model, c.n_kv_heads, c.head_dim)),
                "wo": stack("self_attn.o_proj.weight", (c.n_heads, c.head_dim, c.d_model)),
                "q_norm": norm("q_norm", c.n_heads),
                "k_norm": norm("k_norm", c.n_kv_heads),
            },
            "attn_norm": stack("input_layernorm.weight", (c.d_model,)),
            "mlp": {
                "gate": stack("mlp.gate_proj.weight", (c.d_model, c.d_ff)),
                "up": stack("mlp.up_proj.weight", (c.d_model, c.d_ff)),
                "down": stack("mlp.down_proj.weight", (c.d_ff, c.d_model)),
            },
            "mlp_norm": stack("post_attention_layernorm.weight", (c.d_model,)),
        },
        "norm": top(model.model.norm.weight),
        "head": top(model.lm_head.weight).T,
    }


@pytest.mark.parametrize("norm_order", ["pre", "swin"])
def test_hidden_states_logits_loss_and_gradients_equal_those_of_the_torch_port(norm_order):
    config = dataclasses.replace(CONFIG, norm_order=norm_order)
    model = torch_model(config)
    weights = to_our_tree(model, config)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(
        lambda s: s.shape, transformer.params.abstract(transformer.param_specs(config))
    )
    rng = np.random.default_rng(1)
    tokens = rng.integers(9, config.vocab_size, (2, 18))
    positions = jnp.broadcast_to(jnp.arange(18), tokens.shape)
    segments = jnp.ones(tokens.shape, jnp.int32)
    targets, mask = np.roll(tokens, -1, axis=1), np.ones(tokens.shape, np.float32)
    mask[:, -1] = 0

    # The port overwrites the logits of image ids, so logits and loss are taken from its hidden states.
    hidden = model.model(input_ids=torch.from_numpy(tokens), use_cache=False).last_hidden_state
    their_logits = model.lm_head(hidden)
    their_loss = torch.nn.functional.cross_entropy(
        their_logits[:, :-1].reshape(-1, config.vocab_size), torch.from_numpy(tokens)[:, 1:].reshape(-1)
    )
    their_loss.backward()

    def loss(weights):
        out = transformer.forward(weights, jnp.asarray(tokens), positions, segments, config)
        sums = losses.cross_entropy(
            out.hidden,
            weights["head"],
            jnp.asarray(targets),
            mask,
            jnp.zeros(tokens.shape, jnp.int32),
            (1.0, 1.0),
            LossConfig(z_loss=0.0),
        )
        return sums.objective / sums.normaliser, out.hidden

    (our_loss, our_hidden), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
    np.testing.assert_allclose(our_hidden, hidden.detach(), atol=1e-4)
    np.testing.assert_allclose(transformer.logits(weights, our_hidden, config), their_logits.detach(), atol=1e-4)
    np.testing.assert_allclose(our_loss, their_loss.item(), atol=1e-5)
    expected = to_our_tree(model, config, of=lambda parameter: parameter.grad)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=jax.tree_util.keystr(path))
