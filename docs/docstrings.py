"""Docstrings as the site shows them (a Griffe extension): Sphinx's roles become links, where there is a target."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)([^`]+)`")


class Roles(griffe.Extension):
    """``:class:`~package.module.Name` `` becomes a link to the class on the page that describes it; else its name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """
        :param obj: what may have a docstring
        :param kwargs: not used
        """
        if obj.docstring is None:
            return

        def link(match: re.Match[str]) -> str:
            short, name = match.groups()
            text = name.rsplit(".", 1)[-1] if short else name
            try:
                target = obj.resolve(name) if "." not in name else name
            except griffe.NameResolutionError:
                target = name
            return f'<autoref identifier="{target}" optional><code>{text}</code></autoref>'

        text = ROLE.sub(link, obj.docstring.value)
        if obj.is_class and "__init__" not in obj.members:  # records and modules, whose arguments are their fields
            text = text.replace(":param ", ":ivar ")
        obj.docstring.value = text
