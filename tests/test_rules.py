"""An answer under rules is what sorting everything and walking down it would give; what is missing is counted."""

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.errors import InputError, StateError
from components.serving.attributes import ItemAttributes
from components.serving.rules import Rules, Wanted, apply, best_rows, scores_of_order, select

GENRES = ["Action", "Comedy", "Drama", "Horror"]
STUDIOS = ["A24", "Fox", "Ghibli"]


def catalogue(columns, first_seen=None):
    """A catalogue with the attributes `columns`: name -> one text or None per item."""
    num_items = len(next(iter(columns.values()))) if columns else len(first_seen)
    arrays = {
        "item_id": pa.array(range(num_items), pa.int64()),
        "key": pa.array([str(row) for row in range(num_items)]),
        "title": pa.array([f"Item {row}" for row in range(num_items)]),
        "count": pa.array([1] * num_items, pa.int64()),
        "last_seen": pa.array([9] * num_items, pa.int64()),
    }
    arrays |= {name: pa.array(texts, pa.string()) for name, texts in columns.items()}
    if first_seen is not None:
        arrays["first_seen"] = pa.array(first_seen, pa.int64())
    return pa.table(arrays)


def index(columns, first_seen=None):
    return ItemAttributes.from_table(catalogue(columns, first_seen))


@cache
def parse(text):
    return {part for part in (text or "").split("|") if part}


def naive_verdict(rules, row, seen, columns, first_seen):
    """The first rule that removes a row, None where it stays."""
    if rules.exclude_seen and row in seen:
        return "seen"
    if row in rules.exclude:
        return "exclude"
    if rules.allow is not None and row not in rules.allow:
        return "allow"
    for name, (any_of, none_of) in rules.attributes.items():
        values = parse(columns[name][row])
        if (any_of and not values & set(any_of)) or values & set(none_of):
            return f"attributes.{name}"
    if rules.first_seen_from is not None and first_seen[row] < rules.first_seen_from:
        return "first_seen"
    return None


def naive_select(scores, rows, k, caps, columns):
    """Sort everything, then walk: the chosen rows, and what each cap kept out before the last of them."""
    chosen, skipped = [], []

    def in_the_way(row):
        for name, most in caps.items():
            for value in parse(columns[name][row]):
                if sum(value in parse(columns[name][other]) for other in chosen) >= most:
                    return name
        return None

    for row in sorted(rows, key=lambda row: (-scores[row], row)):
        if len(chosen) == k:
            break
        (skipped if in_the_way(row) else chosen).append(row)
    passed_over = dict.fromkeys(caps, 0)
    for row in skipped:
        passed_over[in_the_way(row)] += 1
    return chosen, passed_over


def rule_keys(rules):
    keys = ["seen"] if rules.exclude_seen else []
    keys += ["exclude"] if rules.exclude else []
    keys += ["allow"] if rules.allow is not None else []
    keys += [f"attributes.{name}" for name in rules.attributes]
    return keys + (["first_seen"] if rules.first_seen_from is not None else [])


texts = st.one_of(st.none(), st.lists(st.sampled_from(GENRES), max_size=3).map("|".join))
studios = st.one_of(st.none(), st.sampled_from(STUDIOS))
few_scores = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.25, 0.5, np.inf])


@st.composite
def cases(draw):
    """A catalogue whose last items hold every value once, a request, scores with many ties."""
    num_items = draw(st.integers(1, 24))
    columns = {
        "genres": [*draw(st.lists(texts, min_size=num_items, max_size=num_items)), *GENRES],
        "studio": [*draw(st.lists(studios, min_size=num_items, max_size=num_items)), *STUDIOS, None],
    }
    num_items += len(GENRES)
    first_seen = draw(st.lists(st.integers(0, 5), min_size=num_items, max_size=num_items))
    rows = st.lists(st.integers(-1, num_items - 1), max_size=12)

    def wanted(values):
        some = st.lists(st.sampled_from(values), max_size=2).map(tuple)
        return st.builds(Wanted, some, some)

    rules = Rules(
        exclude_seen=draw(st.booleans()),
        exclude=draw(rows),
        allow=draw(st.one_of(st.none(), st.lists(st.integers(-1, num_items - 1), max_size=40))),
        attributes=draw(st.fixed_dictionaries({}, optional={"studio": wanted(STUDIOS), "genres": wanted(GENRES)})),
        caps=draw(st.fixed_dictionaries({}, optional={"studio": st.integers(1, 3), "genres": st.integers(1, 4)})),
        first_seen_from=draw(st.one_of(st.none(), st.integers(-1, 6))),
    )
    scores = draw(st.lists(few_scores, min_size=num_items, max_size=num_items))
    return columns, first_seen, rules, draw(rows), np.array(scores, dtype=np.float32)


@settings(deadline=None)
@given(cases(), st.integers(1, 60))
def test_any_combination_of_rules_equals_sorting_everything_and_walking_down(case, k):
    columns, first_seen, rules, seen, scores = case
    verdicts = [naive_verdict(rules, row, seen, columns, first_seen) for row in range(len(scores))]

    eligible = apply(rules, seen, index(columns, first_seen))
    selection = select(scores, eligible, k, rules.caps)

    left = [row for row, verdict in enumerate(verdicts) if verdict is None]
    assert eligible.removed == {key: verdicts.count(key) for key in rule_keys(rules)}
    assert list(eligible.removed) == rule_keys(rules)
    assert eligible.count == len(left) == len(scores) - sum(eligible.removed.values())
    assert (eligible.mask_X is None) == (len(left) == len(scores))
    assert eligible.mask_X is None or np.flatnonzero(eligible.mask_X).tolist() == left
    assert (selection.rows, selection.passed_over) == naive_select(scores, left, k, rules.caps, columns)
    assert all(type(row) is int for row in selection.rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.booleans())
@example(seed=0, levels=1, k=40, has_clusters=True)
def test_many_rounds_down_a_long_ranking_equal_one_sort(seed, levels, k, has_clusters):
    """3,000 items: past the 320 rows of the first round, up to rankings whose head is all of one kind."""
    random = np.random.default_rng(seed)
    brands = random.integers(0, 30, 3_000)
    kinds = random.integers(0, 2 ** len(GENRES), 3_000)
    columns = {
        "brand": [f"b{brand}" if brand else None for brand in brands],
        "genres": ["|".join(g for bit, g in enumerate(GENRES) if kind >> bit & 1) for kind in kinds],
    }
    noise = random.integers(0, 10**levels, 3_000)
    scores = (brands * 10.0**levels * has_clusters + noise).astype(np.float32)
    caps = {"brand": 2, "genres": 15}

    eligible = apply(Rules(attributes={"genres": Wanted(none_of=("Horror",))}, caps=caps), [], index(columns))
    selection = select(scores, eligible, k, caps)

    left = [row for row, text in enumerate(columns["genres"]) if "Horror" not in text]
    assert (selection.rows, selection.passed_over) == naive_select(scores, left, k, caps, columns)


@given(st.lists(few_scores, min_size=1, max_size=30), st.integers(1, 40), st.data())
def test_without_caps_the_answer_is_the_head_of_a_full_stable_sort(values, k, data):
    scores = np.array(values, dtype=np.float32)
    items = ItemAttributes(len(scores))
    seen = data.draw(st.lists(st.integers(0, len(values) - 1)))
    ranking = np.argsort(-scores, kind="stable").tolist()
    assert select(scores, apply(Rules(), [], items), k).rows == ranking[:k]
    unseen = [row for row in ranking if row not in seen]
    assert select(scores, apply(Rules(), seen, items), k).rows == unseen[:k]


@given(st.permutations(range(12)), st.integers(1, 14), st.sets(st.integers(0, 11)))
def test_a_given_order_is_a_ranking_like_any_other(order, k, seen):
    columns = {"genres": [None, "Action", "Comedy"] * 4}
    eligible = apply(Rules(), sorted(seen), index(columns))
    ranks = {row: -place for place, row in enumerate(order)}
    left = [row for row in order if row not in seen]

    assert select(scores_of_order(order), eligible, k).rows == left[:k]
    capped = select(scores_of_order(order), eligible, k, {"genres": 1})
    assert (capped.rows, capped.passed_over) == naive_select(ranks, left, k, {"genres": 1}, columns)


def test_equal_scores_are_ordered_by_row_at_the_cut_too():
    scores = np.array([0.0, 1.0, 1.0, -0.0, 1.0], dtype=np.float32)
    assert best_rows(scores, None, 2).tolist() == [1, 2]
    assert best_rows(scores, None, 4).tolist() == [1, 2, 4, 0]
    assert best_rows(scores, np.array([0, 2, 3, 4]), 3).tolist() == [2, 4, 0]


def test_what_is_eligible_comes_back_even_with_a_score_of_minus_infinity():
    scores = np.array([-np.inf, 1.0, -np.inf, np.inf], dtype=np.float32)
    assert select(scores, apply(Rules(), [1], ItemAttributes(4)), 9).rows == [3, 0, 2]


def test_an_item_removed_by_several_rules_is_counted_under_the_first():
    items = index({"studio": ["Fox", "Fox", "A24", "A24"], "genres": ["Horror"] * 4}, [0, 0, 0, 0])
    rules = Rules(
        exclude=[0, 1],
        allow=[0, 1, 2],
        attributes={"genres": Wanted(none_of=("Horror",)), "studio": Wanted(any_of=("Fox",))},
        first_seen_from=5,
    )
    eligible = apply(rules, [0], items)
    assert eligible.removed == {
        "seen": 1,
        "exclude": 1,
        "allow": 1,
        "attributes.genres": 1,
        "attributes.studio": 0,
        "first_seen": 0,
    }
    assert (eligible.count, select(np.ones(4), eligible, 3).rows) == (0, [])


def test_an_item_is_fresh_from_the_very_second_on():
    items = index({"genres": ["Action"] * 3}, [99, 100, 101])
    eligible = apply(Rules(first_seen_from=100), [], items)
    assert eligible.mask_X.tolist() == [False, True, True]


def test_unknown_items_are_skipped_and_an_allowlist_of_them_alone_allows_nothing():
    items = ItemAttributes(3)
    assert apply(Rules(exclude=[-1]), [-1], items).removed == {"seen": 0, "exclude": 0}
    assert apply(Rules(exclude=[-1]), [-1], items).mask_X is None
    assert apply(Rules(allow=[-1]), [], items).removed == {"seen": 0, "allow": 3}


def test_seen_items_come_back_when_the_request_says_so():
    assert apply(Rules(exclude_seen=False), [0, 1], ItemAttributes(3)).removed == {}


def test_an_item_without_a_value_fails_a_wish_passes_a_ban_and_is_never_capped():
    items = index({"genres": ["Action", None, "", "|", "Action"]})
    assert apply(Rules(attributes={"genres": Wanted(any_of=("Action",))}), [], items).mask_X.tolist() == [1, 0, 0, 0, 1]
    assert apply(Rules(attributes={"genres": Wanted(none_of=("Action",))}), [], items).mask_X.tolist() == [
        0,
        1,
        1,
        1,
        0,
    ]
    selection = select(np.zeros(5), apply(Rules(), [], items), 5, {"genres": 1})
    assert (selection.rows, selection.passed_over) == ([0, 1, 2, 3], {"genres": 1})


def test_a_ban_wins_over_a_wish_and_no_demand_keeps_all():
    items = index({"genres": ["Action", "Action|Horror", "Horror"]})
    both = Rules(attributes={"genres": Wanted(any_of=("Action",), none_of=("Horror",))})
    assert apply(both, [], items).mask_X.tolist() == [True, False, False]
    assert apply(Rules(attributes={"genres": Wanted()}), [], items).mask_X is None


def test_an_item_with_several_values_counts_for_each_of_them():
    items = index({"genres": ["Action|Comedy", "Action", "Comedy|Drama", "Drama", "Drama"]})
    selection = select(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), apply(Rules(), [], items), 5, {"genres": 1})
    assert (selection.rows, selection.passed_over) == ([0, 3], {"genres": 3})


def test_a_value_named_twice_by_one_item_counts_once():
    items = index({"genres": ["Action|Action", "Action", "Action"]})
    assert items.values(0, "genres") == ("Action",)
    assert select(np.zeros(3), apply(Rules(), [], items), 3, {"genres": 2}).rows == [0, 1]


def test_an_item_kept_out_by_two_caps_is_counted_under_the_first():
    items = index({"genres": ["Action", "Action", "Comedy"], "studio": ["Fox", "Fox", "Fox"]})
    everything = apply(Rules(), [], items)
    scores = np.array([3.0, 2.0, 1.0])
    assert select(scores, everything, 3, {"studio": 1, "genres": 1}).passed_over == {"studio": 2, "genres": 0}
    assert select(scores, everything, 3, {"genres": 1, "studio": 1}).passed_over == {"genres": 1, "studio": 1}


def test_what_ranks_below_the_last_chosen_item_was_not_passed_over():
    items = index({"genres": ["Action", "Action", "Comedy", "Action"]})
    selection = select(np.array([4.0, 3.0, 2.0, 1.0]), apply(Rules(), [], items), 2, {"genres": 1})
    assert (selection.rows, selection.passed_over) == ([0, 2], {"genres": 1})


@pytest.mark.parametrize("caps", [{"genres": 0}, {"genres": -1}])
def test_a_cap_below_one_is_refused(caps):
    message = f"caps.genres: a cap is out of range: observed {caps['genres']}, expected 1 or more"
    with pytest.raises(InputError, match=message):
        Rules(caps=caps)
    with pytest.raises(InputError, match=message):
        select(np.zeros(1), apply(Rules(), [], index({"genres": ["Action"]})), 1, caps)


def test_k_below_one_is_refused():
    with pytest.raises(InputError, match="k is out of range: observed 0, expected 1 or more"):
        select(np.zeros(1), apply(Rules(), [], ItemAttributes(1)), 0)


@pytest.mark.parametrize("rules", [Rules(attributes={"genre": Wanted()}), Rules(caps={"genre": 1})])
def test_an_unknown_attribute_is_refused_with_the_known_ones_before_any_score_is_needed(rules):
    with pytest.raises(InputError, match="no attribute of this name: observed 'genre', expected genres, studio"):
        apply(rules, [], index({"genres": ["Action"], "studio": ["Fox"]}))
    with pytest.raises(InputError, match="expected none, because the catalogue says nothing about its items"):
        apply(rules, [], ItemAttributes(1))


@pytest.mark.parametrize("wanted", [Wanted(any_of=("Acton",)), Wanted(none_of=("Acton",))])
def test_an_unknown_value_is_refused_with_the_likeliest_meant(wanted):
    with pytest.raises(InputError, match=r"value of genres: observed 'Acton', expected one of 4, such as 'Action'$"):
        apply(Rules(attributes={"genres": wanted}), [], index({"genres": GENRES}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("COMEDY", "one of 4, such as 'Comedy'"),
        ("zzz", "one of 4, such as 'Action', 'Comedy', 'Drama'"),  # nothing near
        ("", "one of 4, such as 'Action', 'Comedy', 'Drama'"),
        ("Action|Comedy", "one of 4, such as 'Comedy', 'Action'"),  # two values are two entries
    ],
)
def test_what_is_near_a_value_does_not_depend_on_case_and_is_never_nothing(value, expected):
    with pytest.raises(InputError) as caught:
        index({"genres": GENRES}).attribute("genres").marks((value,), ())
    assert caught.value.expected == expected


def test_a_typo_among_many_values_finds_its_neighbours():
    items = index({"brand": [f"brand {number:05}" for number in range(20_000)]})
    with pytest.raises(InputError, match=r"expected one of 20,000, such as 'brand 07123'"):
        items.attribute("brand").marks(("brand 07123 ",), ())


def test_an_attribute_without_any_value_says_so():
    with pytest.raises(InputError, match="of genres: observed 'Action', expected none, because no item has a value"):
        index({"genres": [None, ""]}).attribute("genres").marks(("Action",), ())


def test_freshness_is_refused_where_the_catalogue_does_not_say_when_items_appeared():
    with pytest.raises(InputError, match=r"first_seen_from: this catalogue does not say when .* `dvc repro`"):
        apply(Rules(first_seen_from=5), [], index({"genres": ["Action"]}))


def test_a_row_beyond_the_catalogue_is_an_error_and_not_another_item():
    with pytest.raises(IndexError):
        apply(Rules(), [3], ItemAttributes(3))


def test_string_columns_are_attributes_but_for_an_items_own_id_and_title(tmp_path):
    table = catalogue({"genres": ["Action|Comedy", None], "studio": ["Fox", ""]}, [3, 4])
    table = table.append_column("year", pa.array([1999, 2000])).append_column("tags", pa.array(["b|a|", "a"]))
    pq.write_table(table, tmp_path / "catalogue.parquet")

    items = ItemAttributes.load(tmp_path)

    assert items.names == ("genres", "studio", "tags")
    assert [[items.values(row, name) for row in (0, 1)] for name in items.names] == [
        [("Action", "Comedy"), ()],
        [("Fox",), ()],
        [("a", "b"), ("a",)],
    ]
    assert (items.num_items, items.first_seen_X.tolist()) == (2, [3, 4])


def test_a_catalogue_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(StateError, match=r"catalogue.parquet: is missing.*dvc repro"):
        ItemAttributes.load(tmp_path)
    (tmp_path / "catalogue.parquet").write_bytes(b"no")
    with pytest.raises(StateError, match=r"catalogue.parquet: cannot be read.*dvc repro"):
        ItemAttributes.load(tmp_path)


def test_a_column_in_several_pieces_is_one_attribute():
    whole = catalogue({"genres": ["Action", None, "Comedy|Action", "Action"]})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)])
    items = ItemAttributes.from_table(pieces)
    assert [items.values(row, "genres") for row in range(4)] == [("Action",), (), ("Action", "Comedy"), ("Action",)]


def test_a_request_changes_nothing_that_the_next_one_uses():
    items = index({"genres": ["Action", "Action", "Comedy"]}, [1, 2, 3])
    rules = Rules(attributes={"genres": Wanted(any_of=("Action",))}, caps={"genres": 1})
    scores = np.array([1.0, 2.0, 3.0])
    scores.setflags(write=False)
    answers = []
    for _ in range(2):
        eligible = apply(rules, [], items)
        answers.append((eligible.mask_X.tolist(), eligible.removed, select(scores, eligible, 2, rules.caps)))
    assert answers[0] == answers[1]
    arrays = [eligible.mask_X, items.first_seen_X, items.attribute("genres").sets_X]
    assert not any(array.flags.writeable for array in arrays)


def test_a_million_items_are_filtered_and_capped_exactly():
    random = np.random.default_rng(7)
    kinds = np.array([f"g{first}|g{second}" for first in range(20) for second in range(20)])
    which = random.integers(0, len(kinds), 1_000_000)
    genres = pa.DictionaryArray.from_arrays(which.astype(np.int32), kinds).cast(pa.string())
    items = ItemAttributes.from_table(pa.table({"genres": genres}))
    scores = random.standard_normal(1_000_000, dtype=np.float32)

    wanted = {f"g{number}" for number in range(8)}

    eligible = apply(Rules(attributes={"genres": Wanted(tuple(wanted), ("g15",))}), [5, 6], items)
    selection = select(scores, eligible, 10, {"genres": 2})

    is_wanted = np.array([bool(wanted & parse(kind)) and "g15" not in parse(kind) for kind in kinds])[which]
    is_wanted[[5, 6]] = False
    best = np.flatnonzero(is_wanted & (scores > 3)).tolist()  # hundreds, of which the 10 need a few dozen
    columns = {"genres": {row: str(kinds[which[row]]) for row in best}}
    assert eligible.count == is_wanted.sum() == 1_000_000 - sum(eligible.removed.values())
    assert (selection.rows, selection.passed_over) == naive_select(scores, best, 10, {"genres": 2}, columns)
