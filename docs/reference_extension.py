"""What the reference shows otherwise than the source has it."""

from __future__ import annotations

import ast
from typing import Any

import griffe

# Griffe knows the first in the plural only, and the second not at all.
SECTIONS = {
    "\nExample:\n": "\nExamples:\n",
    "\nThe call raises:\n": "\nAnd its calls may raise:\n\nRaises:\n",
}


class Readable(griffe.Extension):
    """Examples as code, values of constants that are defaults, and no type that says nothing."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Sections of docstrings."""
        if obj.docstring is not None:
            for ours, theirs in SECTIONS.items():
                obj.docstring.value = obj.docstring.value.replace(ours, theirs)

    def on_package(self, *, pkg: griffe.Module, **_kwargs: Any) -> None:
        """Signatures, once names that one module has from another lead there."""
        for module in pkg.modules.values():
            functions = [*module.functions.values()]
            functions += [f for cls in module.classes.values() for f in cls.functions.values()]
            for function in functions:
                _make_readable(function)


def _make_readable(function: griffe.Function) -> None:
    if function.is_alias:
        return
    for parameter in function.parameters:
        if str(parameter.annotation) == "Any":
            parameter.annotation = None
        name = str(parameter.default)
        if name.isupper():
            constant = function.module[name]
            value = (constant.final_target if constant.is_alias else constant).value
            parameter.default = f"{ast.literal_eval(str(value)):g}"
