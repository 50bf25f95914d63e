"""What goes wrong with folders of VLMs: each spoils a whole one (a SmolVLM), and the sentence that it must get."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

RAN = "its_own_code_ran"
"""A file that the folder's own code, or a pickle in it, would leave beside it."""


class Fault(NamedTuple):
    """`spoil(folder)` makes it; the error matches `sentence`."""

    spoil: Callable[[Path], object]
    sentence: str


def edit(file: str, *gone: str, **values: Any) -> Callable[[Path], object]:
    """Spoils a JSON file: other values, and keys that are gone."""

    def spoil(folder: Path) -> None:
        said = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({key: said[key] for key in said if key not in gone}))

    return spoil


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def lose(*files: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / file).unlink() for file in files]


def cut(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-50])


def both(*spoilers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [spoil(folder) for spoil in spoilers]


def _weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], object]:
    file = "model.safetensors"
    return lambda folder: save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})


def _shards(folder: Path) -> None:
    """Two shards, the second of which never came."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(weights) // 2
    names = {name: f"model-{1 + (i >= half):05}-of-00002.safetensors" for i, name in enumerate(weights)}
    first = {name: x for name, x in weights.items() if "00001" in names[name]}
    save_file(first, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _pickle(folder: Path) -> None:
    command = f"open({str(folder / RAN)!r}, 'w').close()"
    (folder / "pytorch_model.bin").write_bytes(f"cbuiltins\nexec\n(S{command!r}\ntR.".encode())


def _own_code(folder: Path) -> None:
    command = f"open({str(folder / RAN)!r}, 'w').close()\n"
    (folder / "own.py").write_text(f"{command}class Config: ...\nclass Model: ...\n")


_AUTO_MAP = {
    "AutoConfig": "own.Config",
    "AutoModelForImageTextToText": "own.Model",
    "AutoProcessor": "own.Model",
    "AutoTokenizer": ["own.Model", "own.Model"],
}
_CONFIG, _PROCESSOR, _TOKENIZER = "config.json", "processor_config.json", "tokenizer_config.json"
_GENERATION, _TEMPLATE = "generation_config.json", "chat_template.jinja"

_SAMPLING = {"do_sample": False, "temperature": 0.2, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.3}


def _template_of_the_tokenizer(folder: Path) -> None:
    edit(_TOKENIZER, chat_template=(folder / _TEMPLATE).read_text())(folder)
    (folder / _TEMPLATE).unlink()


FAULTS = {
    "no configuration": Fault(lose(_CONFIG), "is not a transformers model .*config.json"),
    "a configuration cut short": Fault(cut(_CONFIG), "is not a transformers model .*config.json"),
    "a configuration that is a list": Fault(write(_CONFIG, "[]"), "is not a transformers model"),
    "a configuration of nothing": Fault(write(_CONFIG, "{}"), "is not a transformers model .*model_type"),
    "a policy": Fault(write(_CONFIG, '{"type": "aegis"}'), "is a LeRobot policy of type aegis.*aegis-export"),
    "an unknown type": Fault(edit(_CONFIG, model_type="nobody's"), "is a `nobody's` model.*known families"),
    "a type that is no text": Fault(edit(_CONFIG, model_type=["llava"]), "is not a transformers model"),
    "a text model": Fault(edit(_CONFIG, model_type="llama"), "does not list as image-text-to-text"),
    "a type of another family": Fault(
        edit(_CONFIG, model_type="llava"), "is a `llava` model; known families"
    ),
    "code of its own": Fault(
        both(_own_code, edit(_CONFIG, model_type="own", auto_map=_AUTO_MAP)),
        "code of a model's own is never run",
    ),
    "a processor with code of its own": Fault(
        both(
            _own_code,
            edit(_PROCESSOR, processor_class="Own", auto_map=_AUTO_MAP),
            edit(_TOKENIZER, processor_class="Own", auto_map=_AUTO_MAP),
        ),
        "has no readable processor .*custom code",
    ),
    "attention with code of the hub": Fault(
        edit(_CONFIG, _attn_implementation="kernels-community/flash-attn"), "code of the hub .*never run"
    ),
    "attention that is not installed": Fault(
        edit(_CONFIG, attn_implementation="flash_attention_2"), "needs what is not installed"
    ),
    "quantised": Fault(
        edit(_CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"is quantised \(bitsandbytes\)",
    ),
    "an adapter": Fault(write("adapter_config.json", '{"peft_type": "LORA"}'), "holds an adapter"),
    "sizes that no model has": Fault(
        edit(_CONFIG, text_config={"model_type": "llama", "hidden_size": -1}),
        "is not a transformers model .*hidden size",
    ),
    "no processor": Fault(lose(_PROCESSOR), "has no readable processor"),
    "a processor cut short": Fault(cut(_PROCESSOR), "has no readable processor"),
    "a processor that is a list": Fault(write(_PROCESSOR, "[]"), "has no readable processor"),
    "no tokenizer": Fault(lose("tokenizer.json"), "has no readable processor"),
    "a tokenizer cut short": Fault(cut("tokenizer.json"), "has no readable processor"),
    "a tokenizer alone": Fault(
        both(lose(_PROCESSOR), edit(_TOKENIZER, "processor_class")), "has no readable processor"
    ),
    "no end of answers": Fault(edit(_TOKENIZER, "eos_token"), "has a tokenizer without an end"),
    "no chat template": Fault(lose(_TEMPLATE), "has no chat template"),
    "an empty chat template": Fault(write(_TEMPLATE, ""), "has no chat template|leaves out"),
    "a chat template that is none": Fault(write(_TEMPLATE, "{% for %}"), "chat template that fails"),
    "a chat template that raises": Fault(
        write(_TEMPLATE, "{{ raise_exception('no pictures, please') }}"), "that fails .*no pictures, please"
    ),
    "a chat template for texts alone": Fault(
        write(
            _TEMPLATE, "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
        ),
        "leaves out pictures",
    ),
    "a chat template without the text": Fault(
        write(_TEMPLATE, "{% for m in messages %}<image>{% endfor %}hello"), "leaves out what it is told"
    ),
    "a chat template with a picture too many": Fault(
        write(
            _TEMPLATE,
            "{% for m in messages %}<image>{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}",
        ),
        "processor that cannot read a picture",
    ),
    "another image token": Fault(edit(_CONFIG, image_token_id=7), "makes no image tokens"),
    "a tokenizer of another model": Fault(
        edit(_CONFIG, text_config={"model_type": "llama", "vocab_size": 20}), "has a tokenizer with the token"
    ),
    "generation cut short": Fault(cut(_GENERATION), "no readable generation_config.json"),
    "generation that is a list": Fault(write(_GENERATION, "[]"), "no readable generation_config.json"),
    "an end that is no token": Fault(edit(_GENERATION, eos_token_id="</s>"), "says eos_token_id='</s>'"),
    "a padding that is no token": Fault(edit(_GENERATION, pad_token_id=2.5), "says pad_token_id=2.5"),
    "a penalty that is none": Fault(edit(_GENERATION, repetition_penalty=0), "says repetition_penalty=0"),
    "no weights": Fault(lose("model.safetensors"), "no readable safetensors weights"),
    "weights cut short": Fault(
        cut("model.safetensors"), r"safetensors weights \(model.safetensors: .*download"
    ),
    "a pointer of Git LFS": Fault(
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
        r"safetensors weights \(model.safetensors: ",
    ),
    "a shard that never came": Fault(_shards, r"safetensors weights \(model-00002-of-00002.safetensors: "),
    "an index that is none": Fault(
        both(_shards, write("model.safetensors.index.json", "[]")),
        r"weights \(model.safetensors.index.json: ",
    ),
    "pickled weights": Fault(both(lose("model.safetensors"), _pickle), "only pytorch_model.bin, a pickle"),
    "a weight that is no number": Fault(
        _weights(lambda x: {name: x[name] * (float("nan") if "q_proj" in name else 1) for name in x}),
        "has weights that are NaN or infinite .*q_proj",
    ),
    "an infinite weight": Fault(
        _weights(lambda x: {name: x[name].clone().fill_(float("inf")) for name in x}),
        "has weights that are NaN or infinite",
    ),
    "as many image tokens as another model": Fault(
        edit(_PROCESSOR, image_seq_len=9), "cannot read what its own processor makes of a picture"
    ),
    "a weight lost": Fault(
        _weights(lambda x: {name: x[name] for name in x if "layers.1.mlp" not in name}),
        r"lacks weights of its own architecture \(.*layers.1.mlp.* and 2 more\)",
    ),
    "a weight of another shape": Fault(
        _weights(lambda x: {name: x[name][:, :8].clone() if "up_proj" in name else x[name] for name in x}),
        r"weights of other shapes .*up_proj.weight is \(64, 8\), not \(64, 32\)",
    ),
}
"""Name -> fault."""

_NOT_SAVED = "would not save the generation_config.json of .* what answers do not need is left out"
MENDED = {
    "values of sampling": Fault(edit(_GENERATION, **_SAMPLING), _NOT_SAVED),
    "a temperature of zero": Fault(edit(_GENERATION, do_sample=False, temperature=0.0), _NOT_SAVED),
    "values of beams": Fault(edit(_GENERATION, early_stopping=True, length_penalty=2.0), _NOT_SAVED),
    "several answers": Fault(edit(_GENERATION, num_return_sequences=3), _NOT_SAVED),
    "an output for researchers": Fault(edit(_GENERATION, output_attentions=True), _NOT_SAVED),
    "an argument of generate": Fault(edit(_GENERATION, streamer="text", synced_gpus=True), ""),
    "tokens that are too few": Fault(edit(_GENERATION, max_new_tokens=-1), _NOT_SAVED),
    "a number that is text": Fault(edit(_GENERATION, max_new_tokens="5", do_sample=True), _NOT_SAVED),
    "a cache that is none": Fault(edit(_GENERATION, cache_implementation="none of them"), _NOT_SAVED),
    "generation in the configuration": Fault(edit(_CONFIG, temperature=0.2, num_beams=4), ""),
    "generation in the configuration alone": Fault(
        both(lose(_GENERATION), edit(_CONFIG, temperature=0.2, max_new_tokens=9)), ""
    ),
    "padding that is negative": Fault(edit(_GENERATION, pad_token_id=-1), _NOT_SAVED),
    "valid sampling": Fault(edit(_GENERATION, **_SAMPLING | {"do_sample": True}), ""),
    "valid beams": Fault(edit(_GENERATION, num_beams=4, num_return_sequences=2), ""),
    "outputs in a dictionary": Fault(
        edit(_GENERATION, return_dict_in_generate=True, output_scores=True, stop_strings=["a"]), ""
    ),
    "keys that nobody knows": Fault(edit(_GENERATION, colour="red", temprature=3), ""),
    "methods with code of the hub": Fault(edit(_GENERATION, penalty_alpha=0.6, top_k=4, do_sample=True), ""),
    "no padding": Fault(edit(_GENERATION, "pad_token_id"), ""),
    "no padding anywhere": Fault(
        both(
            edit(_GENERATION, "pad_token_id"), edit(_CONFIG, pad_token_id=None), edit(_TOKENIZER, "pad_token")
        ),
        "",
    ),
    "no end of generation": Fault(edit(_GENERATION, "eos_token_id"), ""),
    "no generation": Fault(lose(_GENERATION), ""),
    "a penalty that is whole": Fault(edit(_GENERATION, repetition_penalty=1), ""),
    "a chat template of the tokenizer": Fault(_template_of_the_tokenizer, ""),
    "a configuration with code beside it": Fault(both(_own_code, edit(_CONFIG, auto_map=_AUTO_MAP)), ""),
    "pickled weights beside": Fault(_pickle, ""),
    "weights that nothing uses": Fault(
        _weights(lambda x: x | {"model.text_model.layers.7.q": x[next(iter(x))].clone()}),
        r"holds weights that its config.json has no place for \(model.text_model.layers.7.q\)",
    ),
}
"""What is no fault, or is mended without a change of what the model answers; `sentence` is the warning, if any."""
