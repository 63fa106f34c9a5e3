import random

from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze.duplicates import SIMILAR, Copies, triples

WORDS = "the a fox dog runs over under lazy quick brown river house tree stone green cold warm bright old new".split()


def find_copies(rows, validation=()):
    copies = Copies()
    for index, (question, answer) in enumerate(rows):
        copies.add(question, answer, validation=index in validation)
    return copies.find()


def story(seed, length=80):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def jaccard(first, second):
    first, second = set(triples(first)), set(triples(second))
    return len(first & second) / len(first | second)


def test_duplicate_row_is_paired_with_the_first_occurrence():
    duplicates = find_copies([("a", "1"), ("b", "2"), ("a", "1"), ("a", "1")])
    assert (duplicates.same.rows, duplicates.same.earlier) == ([2, 3], [0, 0])
    assert duplicates.same_question.rows == [] and duplicates.near.rows == []  # each duplicate is in one list only


def test_repeated_question_with_a_different_answer_is_found():
    duplicates = find_copies([("a b c d", "one two three"), ("a b c d", "four five six seven")])
    assert (duplicates.same_question.rows, duplicates.same_question.earlier) == ([1], [0])


def test_rows_without_a_question_are_not_repeated_questions():
    assert find_copies([("", story(1)), ("", story(2))]).same_question.rows == []


def test_near_duplicates_are_found_and_other_rows_are_not():
    text = story(1)
    near = text.replace("fox", "cat", 1)
    assert jaccard(text, near) > 0.9
    duplicates = find_copies([("q", text), ("q", story(2)), ("q", near), ("q", story(3))])
    assert (duplicates.near.rows, duplicates.near.earlier) == ([2], [0])
    assert abs(duplicates.near.similarity[0] - jaccard(f"q {text}", f"q {near}")) < 0.1


def test_case_and_punctuation_do_not_hide_a_duplicate():
    text = story(1)
    assert find_copies([("q", text), ("q", text.upper().replace(" ", ", "))]).near.rows == [1]


def test_texts_of_symbols_or_two_words_have_no_near_duplicates():
    rows = [("red/blue", ""), ("blue/red", ""), ("😀", ""), ("😡 🎉", ""), ("!", ""), ("की", ""), ("के", "")]
    assert find_copies(rows).near.rows == []


def test_scripts_without_spaces_are_compared_by_character():
    text = "今日は天気がいいから散歩しましょうと彼は言いました。それから公園まで歩いて行きました"
    near = text.removesuffix("た") + "て"
    other = "猫は窓の近くで静かに眠っていましたが、急に外の大きな音を聞いて目を覚ましました"
    assert len(triples(text)) == len(text) - text.count("。") - 2
    assert jaccard(text, near) > 0.9
    assert find_copies([("", text), ("", near), ("", other)]).near.rows == [1]


def test_leak_is_a_validation_row_similar_to_a_training_row():
    text = story(1)
    near = text.replace("fox", "cat", 1)
    duplicates = find_copies([("q", text), ("x", story(5)), ("q", near)], validation={0})
    assert (duplicates.leaks.rows, duplicates.leaks.earlier) == ([0], [2])
    assert find_copies([("q", text), ("q", near)], validation={0, 1}).leaks.rows == []
    assert find_copies([("q", text), ("q", near)]).leaks.rows == []


def test_leak_is_found_even_if_another_validation_row_is_more_similar():
    text = story(1)
    rows = [("q", text), ("q", text + " end"), ("q", text + " stop")]
    assert find_copies(rows, validation={0, 1}).leaks.rows == [0, 1]


def test_pairs_well_above_the_threshold_are_found_and_those_far_below_are_not():
    rng, rows, similarities = random.Random(0), [], []
    for pair in range(200):
        words = story(pair, 60).split()
        other = list(words)
        for _ in range(pair % 8):
            other[rng.randrange(60)] = f"w{rng.random()}"
        rows += [("", " ".join(words)), ("", " ".join(other))]
        similarities.append(jaccard(rows[-2][1], rows[-1][1]))
    near = set(find_copies(rows).near.rows)
    for pair, similarity in enumerate(similarities):
        if similarity == 1:
            assert 2 * pair + 1 not in near  # an identical row
        elif similarity > SIMILAR + 0.07:
            assert 2 * pair + 1 in near
        elif similarity < SIMILAR - 0.15:
            assert 2 * pair + 1 not in near


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.booleans()), min_size=1, max_size=20))
def test_every_reported_duplicate_is_a_duplicate(rows):
    copies = Copies()
    for question, answer, validation in rows:
        copies.add(question, answer, validation=validation)
    duplicates = copies.find()
    for row, earlier in zip(duplicates.same.rows, duplicates.same.earlier, strict=True):
        assert earlier < row and rows[row][:2] == rows[earlier][:2]
    for row, earlier in zip(duplicates.same_question.rows, duplicates.same_question.earlier, strict=True):
        assert earlier < row and rows[row][0] == rows[earlier][0] and rows[row][1] != rows[earlier][1]
    for row, other in zip(duplicates.leaks.rows, duplicates.leaks.earlier, strict=True):
        assert rows[row][2] and not rows[other][2]
    assert all(earlier < row for row, earlier in zip(duplicates.near.rows, duplicates.near.earlier, strict=True))
