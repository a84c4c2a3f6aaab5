"""A small release of the family as Meta ships it: the tree of folders, written with torch and the tokenizers library alone."""

import json

import pytest


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def release_sizes(text_tokenizer_json):
    """(sizes of the transformer, sizes of the codec) that fit the tokenizer."""
    pytest.importorskip("torch")
    from tests.convert import meta_reference, torch_vqgan

    vocab = len(json.loads(text_tokenizer_json)["model"]["vocab"])
    codec = torch_vqgan.Sizes(
        embed_dim=8, n_embed=16, z_channels=8, resolution=16, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1
    )
    return meta_reference.Sizes(vocab=-(-vocab // 4) * 4, swin=True), codec


@pytest.fixture(scope="session")
def release_parts(release_sizes):
    """(shards of the transformer, torch codec)."""
    from tests.convert import meta_reference, torch_vqgan

    sizes, codec = release_sizes
    return meta_reference.random_shards(sizes, 4), torch_vqgan.random_vqgan(codec)


@pytest.fixture
def release_tree(tmp_path, text_tokenizer_json, release_sizes, release_parts):
    """The folder `data` of a release: tokenizer/ and models/30b/ with four shards."""
    import torch
    import yaml

    from tests.convert import meta_reference

    (sizes, codec), (shards, vqgan) = release_sizes, release_parts
    root = tmp_path / "data"
    meta_reference.write(root / "models" / "30b", sizes, shards)
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "text_tokenizer.json").write_text(text_tokenizer_json)
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
    return root


@pytest.fixture
def convert(capsys):
    """convert(*flags) -> (exit code, standard output, standard error) of experiments.convert."""
    from chameleon_jax import cli
    from experiments import convert as command

    def run(*flags):
        argv = [str(flag) for flag in flags]
        with pytest.raises(SystemExit) as stop:
            cli.run(command.main, None, command.__doc__, add_flags=command._flags, workdir=False, argv=argv)
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return run
