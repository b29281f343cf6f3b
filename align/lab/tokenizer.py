"""The lab's tokenizer: byte-pair encoding of about 800 entries, one token a digit, with a chat template.

The template marks what the assistant says with `{% generation %}`, so that trainers can mask everything else, and
writes `prompt` as an exact prefix of `prompt + completion`.
"""

from itertools import islice
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from align.lab import corpus, world

PAD: Final = "<|pad|>"
BOS: Final = "<|bos|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
END: Final = "<|end|>"
SYSTEM: Final = "<|system|>"
UNKNOWN: Final = "<|unk|>"
SPECIAL: Final = (PAD, BOS, USER, ASSISTANT, END, SYSTEM, UNKNOWN)

MAX_LENGTH: Final = 256
"""Longest sequence in tokens, and the number of positions of the model."""

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(*, seed: int = 0, entries: int = 800, examples: int = 8000) -> PreTrainedTokenizerFast:
    """Learn the tokenizer from `examples` pretraining samples and from every name in the world."""
    texts = [text for sample in islice(corpus.samples(seed), examples) for text in sample if text is not None]
    # Words that are many but rare one by one: without this they would be spelt in five pieces each.
    capitals = tuple(fact["capital"] for fact in world.FACTS.values())
    texts += [*world.PRAISE, *world.BLAME, *world.ITEMS] * 50 + [*world.FACTS, *capitals] * 25
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"[^\w▁]"), behavior="isolated"),
        ]
    )
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=entries,
            special_tokens=list(SPECIAL),
            initial_alphabet=["\n", *map(chr, range(33, 127))],
            show_progress=False,
        ),
    )
    bos = bpe.token_to_id(BOS)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
