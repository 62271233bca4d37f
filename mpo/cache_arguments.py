"""What a model's forward calls the cache of its keys and values, and whether these are all that it keeps."""

import inspect
from weakref import WeakKeyDictionary

from transformers import DynamicCache, PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.errors import UnusableModel

_found: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
"""Of models that have been looked at."""


def cache_argument(policy: PreTrainedModel) -> str:
    """What a forward calls its cache; raises UnusableModel where it keeps more than keys and values."""
    if policy not in _found:
        if not _has_plain_cache(policy):
            raise UnusableModel(
                "responses cannot be drawn from this model: it keeps more than keys and values of its tokens",
                model=policy.config.model_type,
            )
        _found[policy] = _named_cache(policy)
    return _found[policy]


def _named_cache(policy: PreTrainedModel) -> str:
    """transformers 5.24 renamed it, architecture by architecture."""
    forward = policy.base.model.forward if isinstance(policy, AdaptedModel) else policy.forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def _has_plain_cache(policy: PreTrainedModel) -> bool:
    """Whether keys and values are all that the model remembers of its tokens."""
    layers = DynamicCache(config=policy.config).layers
    return all(type(layer).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for layer in layers)
