"""Samples of a corpus: from all over it, and held-out ones unseen by the reader."""

from yayan.vocab.sample import HELD_OUT, SAMPLE_CHARACTERS, Sample


def test_a_small_corpus_is_kept_whole_and_handed_on() -> None:
    texts = [str(number) for number in range(120)]
    kept = Sample()
    assert list(kept.watch(texts[:70])) + list(kept.watch(texts[70:])) == texts
    assert kept.texts == texts
    assert (kept.documents, kept.characters) == (120, sum(map(len, texts)))


def test_held_out_documents_are_not_handed_on() -> None:
    texts = [str(number) for number in range(120)]
    kept = Sample(held_out=True)
    read = [*kept.watch(texts[:70]), *kept.watch(texts[70:])]  # two sources, counted as one
    assert kept.texts == ["49", "99"]
    assert read == [text for text in texts if text not in kept.texts]
    assert kept.documents == 120
    few = Sample(held_out=True)
    assert list(few.watch(texts[:49])) == texts[:49]
    assert few.texts == []


def test_a_large_corpus_is_sampled_evenly() -> None:
    for held_out, every in ((False, 1), (True, HELD_OUT)):
        kept = Sample(held_out=held_out)
        count = 3000 * every
        texts = (f"{number:<2000}" if number % every == every - 1 else "" for number in range(count))
        handed_on = sum(1 for _ in kept.watch(texts))
        assert handed_on == (count - 3000 if held_out else count)
        numbers = [int(text) for text in kept.texts]
        steps = {later - earlier for earlier, later in zip(numbers, numbers[1:], strict=False)}
        assert len(steps) == 1, "the distances between kept documents differ"
        assert numbers[-1] > 0.99 * count
        assert SAMPLE_CHARACTERS / 2 <= sum(map(len, kept.texts)) <= SAMPLE_CHARACTERS


def test_only_the_beginning_of_a_long_document_is_kept() -> None:
    kept = Sample(most_characters=10_000)
    long = "a" * 105
    assert list(kept.watch([long])) == [long]
    assert kept.texts == [long[:-5]]
    assert kept.characters == len(long)
