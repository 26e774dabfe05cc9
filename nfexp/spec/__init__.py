"""The typed, checked description of one run.

Types and ranges live here, values only in ``conf/``.
"""

from nfexp.spec.checks import OF_IMAGES, check_shape
from nfexp.spec.errors import SpecError, Words, counted, near
from nfexp.spec.identity import (
    ADDED,
    READING,
    flatten,
    is_relevant,
    relevant,
    run_id,
    stack_key,
    unflatten,
)
from nfexp.spec.mapping import from_mapping, from_text, steps_up_to
from nfexp.spec.parameters import (
    PARAMETERS,
    is_parameter,
    is_parameter_key,
    parameters_in,
    unusual,
    usual_value,
)
from nfexp.spec.ranges import NAME, names_of, within
from nfexp.spec.schema import IMAGE_SETS, SCHEMA_VERSION, Data, Flow, Record, Spec, Train
from nfexp.spec.shapes import batch_points, event_shape, passed_counts, swaps

__all__ = [
    "ADDED",
    "IMAGE_SETS",
    "NAME",
    "OF_IMAGES",
    "PARAMETERS",
    "READING",
    "SCHEMA_VERSION",
    "Data",
    "Flow",
    "Record",
    "Spec",
    "SpecError",
    "Train",
    "Words",
    "batch_points",
    "check_shape",
    "counted",
    "event_shape",
    "flatten",
    "from_mapping",
    "from_text",
    "is_parameter",
    "is_parameter_key",
    "is_relevant",
    "names_of",
    "near",
    "parameters_in",
    "passed_counts",
    "relevant",
    "run_id",
    "stack_key",
    "steps_up_to",
    "swaps",
    "unflatten",
    "unusual",
    "usual_value",
    "within",
]
