import random

from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze.duplicates import SIMILAR, Copies, triples

WORDS = "the a fox dog runs over under lazy quick brown river house tree stone green cold warm bright old new".split()


def look(rows, held=()):
    copies = Copies()
    for number, (question, answer) in enumerate(rows):
        copies.add(question, answer, validation=number in held)
    return copies.find()


def story(seed, length=80):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def jaccard(one, other):
    one, other = set(triples(one)), set(triples(other))
    return len(one & other) / len(one | other)


def test_a_row_that_stands_twice_is_found_beside_its_first():
    found = look([("a", "1"), ("b", "2"), ("a", "1"), ("a", "1")])
    assert (found.same.rows, found.same.earlier) == ([2, 3], [0, 0])
    assert found.same_question.rows == [] and found.near.rows == []  # named once, as what it is


def test_a_question_with_another_answer_is_found():
    found = look([("a b c d", "one two three"), ("a b c d", "four five six seven")])
    assert (found.same_question.rows, found.same_question.earlier) == ([1], [0])


def test_rows_without_a_question_do_not_share_one():
    assert look([("", story(1)), ("", story(2))]).same_question.rows == []


def test_near_copies_are_found_and_others_are_not():
    text = story(1)
    near = text.replace("fox", "cat", 1)
    assert jaccard(text, near) > 0.9
    found = look([("q", text), ("q", story(2)), ("q", near), ("q", story(3))])
    assert (found.near.rows, found.near.earlier) == ([2], [0])
    assert abs(found.near.similarity[0] - jaccard(f"q {text}", f"q {near}")) < 0.1


def test_case_and_punctuation_do_not_hide_a_copy():
    text = story(1)
    assert look([("q", text), ("q", text.upper().replace(" ", ", "))]).near.rows == [1]


def test_texts_of_signs_or_of_two_words_are_near_no_other():
    rows = [("red/blue", ""), ("blue/red", ""), ("😀", ""), ("😡 🎉", ""), ("!", ""), ("की", ""), ("के", "")]
    assert look(rows).near.rows == []


def test_scripts_without_spaces_are_compared_by_character():
    text = "今日は天気がいいから散歩しましょうと彼は言いました。それから公園まで歩いて行きました"
    assert look([("", text), ("", text.replace("散歩", "外出"))]).near.rows in ([], [1])
    assert len(triples(text)) > 30


def test_a_near_leak_is_a_validation_row_like_a_training_row():
    text = story(1)
    near = text.replace("fox", "cat", 1)
    found = look([("q", text), ("x", story(5)), ("q", near)], held={0})
    assert (found.leaks.rows, found.leaks.earlier) == ([0], [2])
    assert look([("q", text), ("q", near)], held={0, 1}).leaks.rows == []
    assert look([("q", text), ("q", near)]).leaks.rows == []


def test_a_leak_is_found_though_a_validation_row_is_nearer_by():
    text = story(1)
    rows = [("q", text), ("q", text + " end"), ("q", text + " stop")]
    assert look(rows, held={0, 1}).leaks.rows == [0, 1]


def test_most_pairs_above_the_limit_are_found_and_none_far_below():
    rng, rows, wanted = random.Random(0), [], []
    for pair in range(200):
        words = story(pair, 60).split()
        other = list(words)
        for _ in range(pair % 8):
            other[rng.randrange(60)] = f"w{rng.random()}"
        rows += [("", " ".join(words)), ("", " ".join(other))]
        wanted.append(jaccard(rows[-2][1], rows[-1][1]))
    found = set(look(rows).near.rows)
    for pair, likeness in enumerate(wanted):
        if likeness == 1:
            assert 2 * pair + 1 not in found  # that is the same row
        elif likeness > SIMILAR + 0.07:
            assert 2 * pair + 1 in found
        elif likeness < SIMILAR - 0.15:
            assert 2 * pair + 1 not in found


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.booleans()), min_size=1, max_size=20))
def test_every_copy_is_one(rows):
    copies = Copies()
    for question, answer, held in rows:
        copies.add(question, answer, validation=held)
    found = copies.find()
    for row, earlier in zip(found.same.rows, found.same.earlier, strict=True):
        assert earlier < row and rows[row][:2] == rows[earlier][:2]
    for row, earlier in zip(found.same_question.rows, found.same_question.earlier, strict=True):
        assert earlier < row and rows[row][0] == rows[earlier][0] and rows[row][1] != rows[earlier][1]
    for row, other in zip(found.leaks.rows, found.leaks.earlier, strict=True):
        assert rows[row][2] and not rows[other][2]
    assert all(earlier < row for row, earlier in zip(found.near.rows, found.near.earlier, strict=True))
