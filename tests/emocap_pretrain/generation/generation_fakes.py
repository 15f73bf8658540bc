"""Writes tiny language models in the layouts of transformers and of GGUF."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emocap_pretrain.captions.rendered.captioner import caption
from emocap_pretrain.captions.rendered.dataset import sample_face

START, END = "<|im_start|>", "<|im_end|>"
WIDTH, LAYERS, HEADS = 32, 2, 4


def tokens() -> FastTokenizer:
    """Returns a byte-level BPE tokenizer (the kind of Llama 3 and SmolLM), trained on captions of rendered faces."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", START, END], initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator([caption(sample_face(0, index)).global_ for index in range(40)], trainer)
    return fast


def model(size: int) -> LlamaForCausalLM:
    """Returns a tiny Llama for a vocabulary of `size` tokens, which has the same random weights in every call.

    The weights are so large that the written tokens differ from image to image.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    built = LlamaForCausalLM(config)
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return built


def write_llama(folder: Path, **saving: bool) -> None:
    """Writes the Llama of `model` with its tokenizer, in the layout of transformers.

    `saving` has further arguments of the model's `save_pretrained`.
    """
    fast = tokens()
    model(fast.get_vocab_size()).save_pretrained(folder, **saving)
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=END, bos_token=START).save_pretrained(folder)


def write_gguf(path: Path) -> None:
    """Writes the model that `write_llama` writes as a GGUF file, with llama.cpp's names and order of weights."""
    import gguf

    fast = tokens()
    built = model(fast.get_vocab_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(built.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(fast.get_vocab_size())
    vocabulary = sorted(fast.get_vocab(), key=fast.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if number < 3 else 1 for number in range(len(vocabulary))])
    merges = json.loads(fast.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in built.state_dict().items():
        writer.add_tensor(_gguf_name(name), _permuted(name, tensor).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def _gguf_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _permuted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a weight of transformers in the order of llama.cpp, which differs for the weights of queries and keys.

    The rotary embedding of transformers pairs a row with the row half a head further; that of llama.cpp pairs
    neighbours. Other weights are returned unchanged.
    """
    heads = {"q_proj": HEADS, "k_proj": 2}.get(name.split(".")[-2], 0)
    if not heads:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, -1).transpose(1, 2).reshape(tensor.shape)
