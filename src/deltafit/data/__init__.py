"""Load, check, split and tokenise labelled texts; find models and data sets by name."""

from deltafit.data.catalogue import DATA_SETS, MODELS, ModelSource, resolve_model
from deltafit.data.facts import duplicates_between
from deltafit.data.labels import LabelSet, class_weights, label_set
from deltafit.data.rows import MalformedTableError
from deltafit.data.sampling import balanced_indices, stratified_cut, stratified_sample
from deltafit.data.sources import check_path
from deltafit.data.splits import Splits, check_paths, load_labelled, load_splits
from deltafit.data.texts import LabelledTexts
from deltafit.data.tokens import Tokenised, across_lengths, epoch_order, length_grouped, tokenise
from deltafit.data.unlabelled import iterate_texts, load_texts

__all__ = [
    "DATA_SETS",
    "MODELS",
    "LabelSet",
    "LabelledTexts",
    "MalformedTableError",
    "ModelSource",
    "Splits",
    "Tokenised",
    "across_lengths",
    "balanced_indices",
    "check_path",
    "check_paths",
    "class_weights",
    "duplicates_between",
    "epoch_order",
    "iterate_texts",
    "label_set",
    "length_grouped",
    "load_labelled",
    "load_splits",
    "load_texts",
    "resolve_model",
    "stratified_cut",
    "stratified_sample",
    "tokenise",
]
