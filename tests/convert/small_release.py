"""A small release of the family as Meta ships it: the tree of folders, written with torch and the tokenizers library alone."""

import functools
import json
from pathlib import Path


@functools.cache
def text_tokenizer_json():
    """A text_tokenizer.json in the published layout: 16 image codes, 80 reserved ids, added tokens for all specials."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(["a red fox and a green frog in the red grass"] * 9, trainer)
    content = json.loads(trained.to_str())
    codes = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(16)]
    names = ["<s>", "<pad>", "</s>", "<unk>", *codes, "<eoss>", "<racm3:break>"]
    names += [f"<reserved{i - 4:05}>" for i in range(len(names), len(names) + 80)]
    pieces = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"] = {name: i for i, name in enumerate(names + pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": i, "content": name, **flags} for i, name in enumerate(names)]
    return json.dumps(content)


def sizes(**more):
    """(sizes of the transformer, sizes of the codec) that fit the tokenizer; `more` are fields of the transformer's."""
    from tests.convert import meta_reference, torch_vqgan

    vocab = len(json.loads(text_tokenizer_json())["model"]["vocab"])
    codec = torch_vqgan.Sizes(
        embed_dim=8, n_embed=16, z_channels=8, resolution=16, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1
    )
    return meta_reference.Sizes(vocab=-(-vocab // 8) * 8, **more), codec


def write_tree(root, name, sizes, shards, codec, vqgan):
    """The folder of a release: tokenizer/ and models/NAME with these shards."""
    import torch
    import yaml

    from tests.convert import meta_reference

    meta_reference.write(root / "models" / name, sizes, shards)
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "text_tokenizer.json").write_text(text_tokenizer_json())
    torch.save({"state_dict": vqgan.state_dict() | {"loss.logvar": torch.zeros(1)}}, tokenizer / "vqgan.ckpt")
    ddconfig = {
        name: list(value) if isinstance(value := getattr(codec, name), tuple) else value
        for name in (
            "z_channels",
            "resolution",
            "in_channels",
            "out_ch",
            "ch",
            "ch_mult",
            "num_res_blocks",
            "attn_resolutions",
        )
    }
    params = {"embed_dim": codec.embed_dim, "n_embed": codec.n_embed, "ddconfig": ddconfig | {"double_z": False}}
    (tokenizer / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))


def write(root: Path, kind: str) -> None:
    """A release of random weights: "7b" in one shard, "34b" in four, with the norm order of each and eight KV heads."""
    from tests.convert import meta_reference, torch_vqgan

    transformer, codec = sizes(swin=kind == "34b", n_kv_heads=8)
    shards = meta_reference.random_shards(transformer, {"7b": 1, "34b": 4}[kind])
    write_tree(root, {"7b": "7b", "34b": "30b"}[kind], transformer, shards, codec, torch_vqgan.random_vqgan(codec))


def as_lumina(folder: Path) -> None:
    """Make a release in Hugging Face's layout one of Lumina-mGPT, which has no codec of its own."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "vqmodel" not in key}, file)
    values = json.loads((folder / "config.json").read_text())
    del values["vq_config"]
    values |= {"architectures": ["ChameleonXLLMXForConditionalGeneration"], "mask_image_logits": False}
    (folder / "config.json").write_text(json.dumps(values))
