"""Methods as data: text and JSON back to the same method, the scalings, what is refused."""

import json
import math
import pickle
from dataclasses import fields
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafit.errors import UsageError
from deltafit.methods import (
    METHODS,
    BitFit,
    FreezeFirst,
    Full,
    Head,
    LastBlocks,
    LoRA,
    Method,
    Modules,
    Norms,
    method_from_dict,
    method_with,
    parse_method,
)
from deltafit.methods.lora_start import Initialisation

# Anything may name a module; these characters mean something in a method's text.
odd = st.text('ab0.,=+>:"[] \\\n-_') | st.text()
word = st.from_regex(r"[a-z]\w{0,6}", fullmatch=True) | st.sampled_from(["none", "all-linear"])
module = st.lists(word | st.integers(0, 30).map(str), min_size=1, max_size=3).map(".".join) | odd
names = st.lists(module, max_size=3).map(tuple)
expression = st.sampled_from([r"re:.*\.query", r"re:h\.\d{1,2}\..*(q|v)_proj", "re:a,b=c"]) | odd
positive = st.floats(0, allow_infinity=False, exclude_min=True) | st.integers(1, 64)
rank = st.integers(1, 512)
lora = st.builds(
    LoRA,
    target_modules=st.none() | st.just("all-linear") | expression | names,
    layers=st.none() | st.lists(st.integers(-12, 12), max_size=3).map(tuple),
    trained_modules=st.just(()) | names,
    rank=rank,
    alpha=positive,
    dropout=st.floats(0, 1, exclude_max=True),
    learning_rate_ratio=positive,
    freeze_a=st.booleans(),
    scaling=st.sampled_from(["alpha/r", "alpha", "alpha/sqrt(r)"]),
    initialisation=st.sampled_from(get_args(Initialisation)),
    rank_pattern=st.lists(st.tuples(module, rank), max_size=2).map(tuple),
    alpha_pattern=st.lists(st.tuples(module, positive), max_size=2).map(tuple),
)
chosen = (expression | st.lists(module, min_size=1, max_size=3).map(tuple)).filter(all).filter(bool)
method = (
    st.sampled_from([Full(), Head(), BitFit(), Norms()])
    | st.builds(LastBlocks, count=rank)
    | st.builds(FreezeFirst, count=st.integers(0, 64))
    | st.builds(Modules, pattern=chosen)
    | lora
)


@given(method)
def test_a_method_comes_back_from_its_text_and_from_json(method: Method) -> None:
    assert parse_method(str(method)) == method
    assert method_from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert hash(method_from_dict(method.to_dict())) == hash(method)
    assert pickle.loads(pickle.dumps(method)) == method
    assert set(method.to_dict()) == {"method", *(f.name for f in fields(method))}


def test_common_text_is_plain_and_only_odd_text_is_json() -> None:
    for text in (
        r"lora:target_modules=re:h\.\d{1,2}\..*(q|v)_proj,layers=0+-1,rank=4",
        "lora:target_modules=query+h.0.value,alpha=32.5,rank_pattern=query>4",
        "lora:target_modules=all-linear,trained_modules=pooler",
        'lora:target_modules="re:a,b=c",rank=4',
        'lora:target_modules=["a+b"],alpha_pattern=[["x>y", 2]]',
    ):
        assert str(parse_method(text)) == text


def test_settings_of_their_own_flags() -> None:
    flags = {"target_modules": r"re:.*\.\d{1,2}\.query", "layers": "0,-1", "alpha": "8"}
    expected = LoRA(target_modules=r".*\.\d{1,2}\.query", layers=(0, -1), alpha=8, rank=4)
    assert method_with("lora:rank=4", flags) == expected
    assert method_with("lora", {"target_modules": "query, value"}) == LoRA(("query", "value"))
    with pytest.raises(UsageError, match="rank is set twice"):
        method_with("lora:rank=4", {"rank": "8"})


def test_the_names_of_methods() -> None:
    # The two lists of names as users and result files know them, written out on purpose.
    assert {name: m.result_name for name, m in METHODS.items()} == {
        "full": "all",
        "head": "last_layer",
        "last-block": "last_block",
        "freeze-first": "freeze_first",
        "modules": "modules",
        "bitfit": "bitfit",
        "norms": "norms",
        "lora": "lora",
        "dora": "dora",
        "adalora": "adalora",
        "loha": "loha",
        "lokr": "lokr",
        "ia3": "ia3",
        "vera": "vera",
        "sparse": "sparse",
        "bottleneck": "bottleneck",
        "prefix": "prefix",
        "prompt": "prompt",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora", LoRA()),
        (" lora:rank=4 , alpha=32.5,", LoRA(rank=4, alpha=32.5)),
        ("lora:target-modules=query+value,rank=2", LoRA(target_modules=("query", "value"), rank=2)),
        ("lora:target_modules=query,value,rank=2", LoRA(target_modules=("query", "value"), rank=2)),
        ("lora:target_modules=all-linear", LoRA(target_modules="all-linear")),
        ("lora:target_modules=None,layers=0+-1", LoRA(layers=(0, -1))),
        (r"lora:target_modules=re:.*\.h{1,2}", LoRA(target_modules=r".*\.h{1,2}")),
        ("lora:rank_pattern=query>4+value>8", LoRA(rank_pattern=(("query", 4), ("value", 8)))),
        ("lora:scaling=alpha/sqrt(r)", LoRA(scaling="alpha/sqrt(r)")),
        ("last-block:count=2", LastBlocks(2)),
        ("freeze-first:count=0", FreezeFirst(0)),
        ("modules:pattern=attention+layer.5", Modules(("attention", "layer.5"))),
        ("modules:pattern=pooler", Modules("pooler")),
        (r"modules:pattern=re:.*\.h{1,2}", Modules(r"re:.*\.h{1,2}")),
    ],
)
def test_text_of_the_command_line(text: str, expected: Method) -> None:
    assert parse_method(text) == expected


def test_lists_and_mappings_are_taken_and_kept_as_tuples() -> None:
    method = LoRA(target_modules=["query"], layers=[0], rank_pattern={"query": 4})  # type: ignore[arg-type]
    assert method == LoRA(target_modules=("query",), layers=(0,), rank_pattern=(("query", 4),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "lroa",
            r"no method 'lroa'; there are full, head, .*lora, .*\. Did you mean 'lora'\?",
        ),
        ("", "no method ''"),
        ("lora:rnak=4", "no setting 'rnak'; .* Did you mean 'rank'?"),
        ("head:rank=4", "'head' has no setting 'rank'; it has none"),
        ("lora:rank", "'rank' is not a setting. Write it as setting=value"),
        ("lora:rank=4,rank=8", "rank is set twice"),
        ("lora:rank=four", "lora:rank takes a number; got 'four'"),
        ("lora:rank=8,alpha", "takes a number; got '8,alpha'. Further settings are written"),
        ("lora:rank=0", "rank must be a whole number of at least 1; got 0"),
        ("lora:rank=-3", "rank must be a whole number of at least 1; got -3"),
        ("lora:rank=8.0", "rank must be a whole number of at least 1; got 8.0"),
        ("lora:rank_pattern=query>0", "rank must be a whole number of at least 1; got 0"),
        ("lora:rank_pattern=query", "entries written name>number; got 'query'"),
        ("lora:alpha=0", "alpha must be a finite number above 0; got 0"),
        ("lora:alpha=nan", "alpha must be a finite number above 0; got nan"),
        ("lora:alpha_pattern=query>inf", "alpha must be a finite number above 0; got inf"),
        ("lora:dropout=1", "dropout must be at least 0 and below 1; got 1"),
        ("lora:dropout=nan", "dropout must be at least 0 and below 1; got nan"),
        ("lora:scaling=r", r"scaling must be one of alpha/r, alpha, alpha/sqrt\(r\); got 'r'"),
        ("lora:initialisation=psisa", "initialisation must be one of kaiming, gaussian"),
        ('lora:target_modules=["a"', "begins as JSON and is none: .* at position 4"),
        ('lora:rank=["a"]', "rank must be a whole number"),
        ("lora:layers=1.5", "layers takes a tuple of block indices"),
        ("last-block:count=0", "count must be a whole number of at least 1; got 0"),
        ("freeze-first:count=-1", "count must be a whole number of at least 0; got -1"),
        ("modules", r"Name the modules to train, such as modules:pattern=attention\+layer.5"),
        ("modules:pattern=", "Name the modules to train"),
        ("modules:pattern=none", "pattern takes module names such as .*; got None"),
    ],
)
def test_text_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_method(text)


@pytest.mark.parametrize(
    "content",
    [
        {"method": "lora", "alpha": "x"},
        {"method": "lora", "dropout": None},
        {"method": "lora", "layers": 3},
        {"method": "lora", "trained_modules": "classifier"},
        {"method": "lora", "target_modules": [1]},
        {"method": "lora", "rank": True},
        {"method": "lora", "rank_pattern": "q"},
        {"method": "lora", "rank_pattern": 5},
        {"method": "lora", "rank_pattern": None},
        {"method": "lora", "rank_pattern": [["query", 1, 2]]},
        {"method": "lora", "alpha_pattern": [[1, 2]]},
        {"method": "last-block", "count": "2"},
        {"method": "modules", "pattern": [1]},
        {"method": "modules", "pattern": ["a", ""]},
        {"method": "lroa"},
        {},
    ],
)
def test_json_that_is_refused_in_a_sentence(content: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        method_from_dict(content)


def test_a_fractional_rank_is_told_apart_from_a_sparse_update() -> None:
    with pytest.raises(UsageError) as error:
        parse_method("lora:rank=0.2")
    said = str(error.value)
    assert "got 0.2" in said and "20%" in said
    assert "sparse update" in said and "not LoRA" in said and "4, 8 or 16" in said


@given(rank=rank, alpha=positive)
def test_the_three_scalings(rank: int, alpha: float) -> None:
    assert LoRA(rank=rank, alpha=alpha).factor == pytest.approx(alpha / rank)
    assert LoRA(rank=rank, alpha=alpha, scaling="alpha").factor == alpha
    root = LoRA(rank=rank, alpha=alpha, scaling="alpha/sqrt(r)").factor
    assert root == pytest.approx(alpha / math.sqrt(rank))


def test_patterns_match_whole_segments_and_the_first_counts() -> None:
    method = LoRA(
        rank_pattern=(("1.query", 2), ("query", 4)), alpha_pattern=(("layer.0.query", 3),)
    )
    assert method.for_module("layer.1.query") == LoRA(rank=2)
    assert method.for_module("layer.11.query") == LoRA(rank=4)
    assert method.for_module("layer.0.query") == LoRA(rank=4, alpha=3)
    assert method.for_module("layer.0.my_query") == LoRA()
    assert method.patterns() == ("1.query", "query", "layer.0.query")
