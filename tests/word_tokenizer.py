"""A tokenizer of whole words for the tiny CLIP."""

WORDS = [*("a", "an", "the", "photo", "of", "normal", "anomalous", "bottle", "metal", "nut"), "object", ".", "with"]


def make_tokenizer():
    """A tokenizer of whole words for the tiny CLIP: 97 and 98 are the ends of a text, 96 is an unknown word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: 3 + place for place, word in enumerate(WORDS)} | {"<unk>": 96, "<bos>": 97, "<eos>": 98}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 97), ("<eos>", 98)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
