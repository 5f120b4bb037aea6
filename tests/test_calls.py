"""The calls of the ops: fields in the order of the ops' own arguments, and what one call is made of another's."""

import pytest
import torch

import fastdiff.engine
import fastdiff.ops  # noqa: F401
from fastdiff import calls


def every_call():
    return [value for value in vars(calls).values() if isinstance(value, type) and issubclass(value, tuple)]


def op_of(call):
    """step of StepCall, group_norm_act_backward of GroupNormActBackwardCall."""
    letters = [f"_{c.lower()}" if c.isupper() else c for c in call.__name__.removesuffix("Call")]
    return "".join(letters).lstrip("_")


@pytest.mark.parametrize("call", every_call(), ids=lambda call: call.__name__)
def test_a_call_has_the_arguments_of_its_op(call):
    schema = getattr(torch.ops.fastdiff, op_of(call)).default._schema
    assert tuple(argument.name for argument in schema.arguments) == call._fields
    # No defaults: whoever makes a call says everything.
    assert not call._field_defaults


def test_the_terms_of_a_bound_loss_are_its_arguments_of_the_same_name():
    values = {name: object() for name in calls.BoundLossCall._fields}
    terms = calls.BoundLossCall(**values).terms()
    assert terms == calls.BoundTermsCall(**{name: values[name] for name in calls.BoundTermsCall._fields})
